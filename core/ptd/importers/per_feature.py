"""Systems of one input and one output per feature, as the programs around S4 have them, as S4D, DSS and S4 layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..discretization import RULES, bilinear_low_rank
from ..initialization import Leaves
from ..layers import S4, S4D
from ..recurrence import dense_transition
from .arrays import flatten, joined, leaves_of, take, unit_of_time, upper_half

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]

#: How much larger a readout of the next sample may be than the readout itself: two of float32's seven digits.
LARGEST_LEAD = 100.0


def take_kernel(
    arrays: Mapping[str, Any], prefix: str, axes: Mapping[str, str], *, place: str = "kernel", D: str = "Channels H"
) -> dict[str, NDArray]:
    """D below the prefix and the arrays of axes at the kernel's place below it, by their own names.

    The map that mixes features after the system, output_linear, is not the layer's and may be there.

    >>> arrays = {"layer.D": [1.0], "layer.kernel.C": [2.0], "layer.output_linear.0.bias": [3.0]}
    >>> {name: value.tolist() for name, value in take_kernel(arrays, "layer", {"C": "H"}, D="H").items()}
    {'D': [1.0], 'C': [2.0]}
    """
    output = joined(prefix, "output_linear") + "/"
    own = {name: value for name, value in flatten(arrays).items() if not name.startswith(output)}
    found = take(own, prefix, {"D": D} | {f"{place}/{name}": letters for name, letters in axes.items()})
    return {name.removeprefix(f"{place}/"): value for name, value in found.items()}


def per_copy(values: NDArray, d_model: int) -> NDArray:
    """Values (S, ...) of the copies of a system, for all features: h uses copy h % S; of one copy those without S.

    >>> per_copy(np.array([[1.0], [2.0]]), 4)[:, 0].tolist(), per_copy(np.array([[1.0]]), 4).tolist()
    ([1.0, 2.0, 1.0, 2.0], [1.0])
    """
    copies = len(values)
    if d_model % copies:
        raise checks.fail("A_real", f"a number of systems that divides H={d_model} from D", copies)
    return values[0] if copies == 1 else values[np.arange(d_model) % copies]


def diagonal_layer(
    Lambda: Complex,
    B: Complex,
    C: Complex,
    D: Real,
    log_step: Real,
    *,
    discretization: str = "zoh",
    conj_sym: bool = True,
    approximate_lag: bool = False,
) -> tuple[S4D, Leaves]:
    """S4D from its system in any unit of time, its reversed direction beginning one sample later.

    Args:
        Lambda, B: (P,), or (H, P) for a system per feature.
        C: (1, H, P), or (2, H, P) with the readout of the reversed run last.
        D, log_step: (H,).
        discretization, conj_sym: of the layer.
        approximate_lag: as in one_later.
    """
    layer = S4D(
        d_model=len(D),
        d_state=2 * C.shape[-1] if conj_sym else C.shape[-1],
        discretization=discretization,
        conj_sym=conj_sym,
        bidirectional=len(C) == 2,
        shared=Lambda.ndim == 1,
    )
    if conj_sym:
        Lambda, B, *rows = upper_half(Lambda, B, *C)
        C = np.stack(rows)
    if layer.bidirectional:
        Lambda_bar, gain = RULES[discretization](Lambda, np.exp(log_step)[:, None])
        with np.errstate(divide="ignore", invalid="ignore"):  # one_later refuses such a lead
            lead = C[1] / Lambda_bar
        C, D = one_later(C, lead, gain * B, D, layer.weight, approximate_lag)
    c = unit_of_time("Lambda", Lambda)
    real = {"D": D, "log_step": log_step - np.log(c)}
    readouts = dict(zip(layer._C_names(), C, strict=True))
    return layer, leaves_of(layer, real, Lambda=Lambda * c, B=B * c, **readouts)


def low_rank_layer(
    Lambda: Complex,
    P: Complex,
    B: Complex,
    C: Complex,
    D: Real,
    log_step: Real,
    *,
    tuned_to: int,
    approximate_lag: bool = False,
) -> tuple[S4, Leaves]:
    """S4 from a system in any unit of time, as diagonal_layer.

    Args:
        Lambda, B, C, D, log_step, approximate_lag: as in diagonal_layer.
        P: as Lambda, with the rank as last axis.
        tuned_to: L where C stands for C (I - A_bar^L) (S4 appendix C.3), 0 where it is C.
    """
    layer = S4(
        d_model=len(D),
        d_state=2 * C.shape[-1],
        bidirectional=len(C) == 2,
        shared=Lambda.ndim == 1,
        rank=P.shape[-1],
    )
    Lambda_upper, B, *rows = upper_half(Lambda, B, *C)
    P, C = np.where(Lambda.imag[..., None] < 0, np.conj(P), P), np.stack(rows)
    transition, B_bar = bilinear_low_rank(Lambda_upper, P, B, np.exp(log_step)[:, None], conj_sym=True)
    A_bar = dense_transition(transition)
    if tuned_to:
        C = _rows_over(C, np.eye(A_bar.shape[-1]) - np.linalg.matrix_power(A_bar, tuned_to))
    if layer.bidirectional:
        C, D = one_later(C, _rows_over(C[1:], A_bar)[0], B_bar, D, layer.weight, approximate_lag)
    c = unit_of_time("Lambda", Lambda)
    real = {"D": D, "log_step": log_step - np.log(c)}
    readouts = dict(zip(layer._C_names(), C, strict=True))
    return layer, leaves_of(layer, real, Lambda=Lambda_upper * c, P=P * np.sqrt(c), B=B * c, **readouts)


def _rows_over(C: Complex, matrix: Complex) -> Complex:
    """C matrix^-1 for rows C (..., H, N) of one mode of each pair and matrices (H, 2N, 2N) on (x, conj x)."""
    both = np.concatenate([C, np.conj(C)], axis=-1)
    try:
        found = np.linalg.solve(np.swapaxes(matrix, -1, -2), both[..., None])
    except np.linalg.LinAlgError:  # exactly singular
        return np.full(C.shape, np.inf + 0j)
    return np.asarray(found[..., : C.shape[-1], 0], np.complex128)


def one_later(
    C: Complex, lead: Complex, B_bar: Complex, D: Real, weight: float, approximate_lag: bool
) -> tuple[Complex, Real]:
    """C and D with which a reversed run that gives y_k from u_k on gives what one from u_{k+1} on does.

    The programs convolve backwards with K_1 u_{k+1} + K_2 u_{k+2} + ..., K_j = C A_bar^{j-1} B_bar. With
    lead = C A_bar^-1 in place of C that is our run but for its term of u_k, which D takes off. Where A_bar is nearly
    singular the two would cancel each other's digits.

    Args:
        C: (2, H, P).
        lead: C[1] A_bar^-1, (H, P).
        B_bar: broadcastable to (H, P).
        D: (H,).
        weight: 2 where a mode stands for a pair.
        approximate_lag: leave features of such an A_bar as they are: their reversed run begins at u_k.

    Raises:
        ValueError: there are such features, and approximate_lag is False.
    """
    checks.boolean("approximate_lag", approximate_lag)
    exact = np.abs(lead).max(axis=-1) <= LARGEST_LEAD * np.abs(C[1]).max(axis=-1)
    if not exact.all() and not approximate_lag:
        got = f"one nearly singular in {np.sum(~exact)} of {len(exact)} features"
        remedy = "their reversed direction begins a sample later than ours: approximate_lag=True accepts that"
        raise checks.fail("C", "a transition with an inverse in a bidirectional layer", got, remedy)
    lead = np.where(exact[:, None], lead, C[1])
    taken_off = np.where(exact, weight * np.sum((lead * B_bar).real, axis=-1), 0.0)
    return np.stack([C[0], lead]), D - taken_off
