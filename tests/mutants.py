"""Backends that are wrong in one way each, for testing the conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

import ptd
from ptd import convolution, recurrence
from ptd.kernels import Kernels
from ptd.layers import Layer
from ptd.reference import ReferenceBackend

Call = dict[str, Any]


class Honest(ReferenceBackend):
    """The reference in float32 and float64, through one method that mutants change."""

    name = "honest"
    unsupported = ReferenceBackend.unsupported

    def apply(self, layer: Layer, params: Any, u: Any, **call: Any) -> Any:
        want_state = call.pop("return_state", False)
        y, x = self.run(layer, dict(params), u, call)
        return (y, x) if want_state else y

    def run(self, layer: Layer, params: Call, u: Any, call: Call) -> tuple[Any, Any]:
        """Output and final state."""
        return layer.apply(params, u, kernels=self.kernels, return_state=True, **call)


def changed(**changes: Any) -> ReferenceBackend:
    """An honest backend with some methods or attributes replaced."""
    return type("Mutant", (Honest,), {"name": "mutant", **changes})()


def with_leaves(change: Callable[[Call], Call]) -> ReferenceBackend:
    """A mutant that misreads its parameters."""
    return changed(run=lambda self, layer, params, u, call: Honest.run(self, layer, params | change(params), u, call))


def with_call(change: Callable[[Call], Call]) -> ReferenceBackend:
    """A mutant that misreads how it is called."""
    return changed(run=lambda self, layer, params, u, call: Honest.run(self, layer, params, u, change(call)))


def with_result(change: Callable[[Any, Any], tuple[Any, Any]]) -> ReferenceBackend:
    """A mutant that spoils its output or final state."""
    return changed(run=lambda self, layer, params, u, call: change(*Honest.run(self, layer, params, u, call)))


def with_patch(target: str, replacement: Callable) -> ReferenceBackend:
    """A mutant with one definition of core replaced while it runs."""

    def run(self: Any, layer: Layer, params: Call, u: Any, call: Call) -> Any:
        with mock.patch(target, replacement):
            return Honest.run(self, layer, params, u, call)

    return changed(run=run)


def circular(u: Any, K: Any) -> Any:
    """A convolution that wraps around."""
    L = u.shape[-2]
    spectrum = np.fft.rfft(np.swapaxes(u, -1, -2), axis=-1) * np.fft.rfft(K, axis=-1)
    return np.swapaxes(np.fft.irfft(spectrum, n=L, axis=-1), -1, -2).astype(u.dtype)


def half_precision_scan(Lambda_bar: Any, drive: Any, state: Any = None, resets: Any = None) -> Any:
    """A scan that keeps its state in 16 bits."""

    def rounded(x: Any) -> Any:
        with np.errstate(over="ignore"):
            return (x.real.astype(np.float16) + 1j * x.imag.astype(np.float16)).astype(x.dtype)

    x, states = np.zeros_like(drive[..., 0, :]) if state is None else state, []
    for k in range(drive.shape[-2]):
        keep = 1 if resets is None else ~resets[..., k, None]
        x = rounded((Lambda_bar if Lambda_bar.ndim == 1 else Lambda_bar[..., k, :]) * x * keep + drive[..., k, :])
        states.append(x)
    return np.stack(states, axis=-2)


def reset_late(Lambda_bar: Any, drive: Any, state: Any = None, resets: Any = None) -> Any:
    """A scan that resets one sample late."""
    late = None if resets is None else np.concatenate([np.zeros_like(resets[..., :1]), resets[..., :-1]], axis=-1)
    return recurrence.scan(Lambda_bar, drive, state, late)


def shifted_steps(call: Call) -> Call:
    """Per-sample steps that belong to the sample before."""
    if np.ndim(call.get("step_scale", 0.0)) == 0:
        return call
    return call | {"step_scale": np.roll(call["step_scale"], 1, axis=-1)}


def without(name: str) -> Callable[[Call], Call]:
    """A call without one argument."""
    return lambda call: {key: value for key, value in call.items() if key != name}


def single_precision(self: Any, layer: Layer, params: Call, u: Any, call: Call) -> Any:
    """Double precision in name only."""

    def narrow(value: Any) -> Any:
        is_real = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return value.astype(np.float32) if is_real else value

    narrow_call = {name: narrow(value) for name, value in call.items()}
    y, x = Honest.run(self, layer, {n: narrow(v) for n, v in params.items()}, narrow(u), narrow_call)
    return y.astype(u.dtype), x.astype(u.dtype)


def lag_free_reverse(self: Any, layer: Layer, params: Call, u: Any, call: Call) -> Any:
    """A reverse run that does not see its own sample."""
    y, x = Honest.run(self, layer, params, u, call)
    if layer.bidirectional:
        only = {"C_reverse_re": 0 * params["C_re"], "C_reverse_im": 0 * params["C_im"]}
        first = u.copy()
        first[..., :, :] = 0
        first[..., 0, :] = u[..., 0, :]
        with_reverse, _ = Honest.run(self, layer, params, first, {"form": "scan"})
        without_reverse, _ = Honest.run(self, layer, params | only, first, {"form": "scan"})
        y[..., 0, :] -= (with_reverse - without_reverse)[..., 0, :]
    return y, x


def final_state_early(self: Any, layer: Layer, params: Call, u: Any, call: Call) -> Any:
    """A final state that lacks the last sample."""
    y, _ = Honest.run(self, layer, params, u, call)
    return y, Honest.run(self, layer, params, u[..., :-1, :], call)[1]


def truncated_kernel(weights: Any, Lambda_bar: Any, L: int) -> Any:
    """A Vandermonde kernel whose last lag is zero."""
    K = convolution.vandermonde(weights, Lambda_bar, L)
    K[..., -1] = 0
    return K


def step_off(params: Call) -> Call:
    """Steps that are 1e-5 too long."""
    return {"log_step": params["log_step"] + np.float32(1e-5)}


def cut_to_width(self: Any, layer: Layer, params: Call, u: Any, call: Call) -> Any:
    """Surplus features dropped without a word."""
    return Honest.run(self, layer, params, u[..., : layer.d_model], call)


#: Each mutant with the clause that must catch it, on a subject it shows on.
MUTANTS: dict[str, tuple[ReferenceBackend, str, str, str]] = {
    "output-delayed-by-one": (
        with_result(lambda y, x: (np.concatenate([0 * y[..., :1, :], y[..., :-1, :]], axis=-2), x)),
        "L1",
        "s5-zoh",
        "float32",
    ),
    "imaginary-part-of-C-dropped": (with_leaves(lambda p: {"C_im": 0 * p["C_im"]}), "L1", "s4d-zoh", "float32"),
    "conjugate-of-C": (with_leaves(lambda p: {"C_im": -p["C_im"]}), "L1", "s4-legs", "float32"),
    "factor-2-of-conjugate-pairs-lost": (
        with_leaves(lambda p: {"C_re": p["C_re"] / 2, "C_im": p["C_im"] / 2}),
        "L1",
        "s5-bilinear-odd",
        "float32",
    ),
    "circular-convolution": (changed(kernels=Kernels(causal_convolution=circular)), "K4", "L127", "float64"),
    "circular-convolution-in-a-layer": (
        changed(kernels=Kernels(causal_convolution=circular)),
        "L2",
        "s4d-zoh",
        "float64",
    ),
    "half-precision-state": (changed(kernels=Kernels(scan=half_precision_scan)), "L1", "s5-zoh", "float32"),
    "single-precision-called-double": (changed(run=single_precision), "L1", "s4-legt", "float64"),
    "step-off-by-1e-5": (with_leaves(step_off), "L9", "s4d-zoh", "float32"),
    "initial-state-ignored": (with_call(without("state")), "L3", "dss-exp", "float32"),
    "reset-one-late": (changed(kernels=Kernels(scan=reset_late)), "L11", "s5-zoh", "float64"),
    "lengths-ignored": (with_call(without("lengths")), "L10", "s4-legs", "float64"),
    "steps-of-the-sample-before": (with_call(shifted_steps), "L12", "s4d-zoh", "float64"),
    "sampling-rate-ignored": (with_call(without("step_scale")), "L13", "s4-fout-odd", "float64"),
    "naive-zoh": (
        with_patch("ptd.discretization.phi_1", lambda z: (np.exp(z) - 1) / z),
        "L7",
        "s4d-zoh",
        "float32",
    ),
    "zoh-for-bilinear": (
        with_patch("ptd.layers.diagonal.RULES", {"zoh": ptd.discretization.zoh, "bilinear": ptd.discretization.zoh}),
        "L1",
        "s5-bilinear-odd",
        "float32",
    ),
    "final-state-one-early": (changed(run=final_state_early), "L1", "s5-zoh", "float32"),
    "reverse-run-without-its-own-sample": (changed(run=lag_free_reverse), "L14", "s4d-zoh", "float64"),
    "skip-dropped": (with_leaves(lambda p: {"D": 0 * p["D"]}), "L1", "s5-all-modes", "float32"),
    "stability-rule-ignored": (
        with_patch("ptd.layers.layer.STABILITY_MARGIN", -np.inf),
        "L16",
        "s4d-zoh",
        "float64",
    ),
    "low-rank-part-dropped": (
        with_leaves(lambda p: {n: 0 * p[n] for n in ("P_re", "P_im") if n in p}),
        "L1",
        "s4-legs",
        "float32",
    ),
    "softmax-normaliser-dropped": (
        with_patch("ptd.layers.dss.phi_1", lambda z: np.ones_like(z)),
        "L1",
        "dss-softmax",
        "float32",
    ),
    "kernel-truncated-by-one": (
        changed(kernels=Kernels(vandermonde=truncated_kernel)),
        "K3",
        "L127",
        "float64",
    ),
    "wrong-shape-accepted": (
        changed(run=cut_to_width),
        "E1",
        "u-width",
        "float64",
    ),
}
