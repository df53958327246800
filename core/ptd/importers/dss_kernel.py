"""Checkpoints of ag1988/dss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..arrays import from_pair
from ..discretization import zoh
from ..initialization import Leaves
from ..layers import DSS, S4D
from .arrays import leaves_of, under, unit_of_time
from .per_feature import one_later, take_kernel

VERSIONS = ("softmax", "exp", "exp-re-im", "exp-no-scale", "clip", "clip-no-scale")
#: What the original adds to squared moduli, or cuts them off at, before it divides by them.
EPSILON = 1e-7


def dss(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    version: str = "softmax",
    kernel_length: int | None = None,
    epsilon: float = EPSILON,
    max_real_Lambda: float = 1e-4,
    approximate_lag: bool = False,
) -> tuple[DSS | S4D, Leaves]:
    """The system of a DSS: all modes are stored, K_l = Re(sum_n W w_n e^{l z_n}), z = Lambda step (DSS prop. 1).

    Of "softmax", w divides each mode by its sum over the length of the sequence, which is asked for: ours keeps that
    length. Real and imaginary parts of Lambda may have a step each (sep_dt_re_im, the original's default): unless they
    are equal, Lambda step is a matter of the feature, and the layer is S4D with conj_sym=False in place of DSS. What
    epsilon does to w, and the missing gain of the versions without scale, go into C. The reversed direction starts one
    sample later, as in s4; max_kernel_length is no property of ours: equal up to it.

    Args:
        arrays: the checkpoint: D (1, H), kernel.W (1 or 2, H, N, 2), kernel.log_dt (H,) or (H, 2), and kernel.Lambda
            (N, 2), or kernel.Lambda_log_neg_re (N,) with Lambda_im or Lambda_log_im (N,).
        prefix: where they are, as "model.layers.0.layer".
        version: as the original was built: "softmax", "exp", "exp-re-im", "exp-no-scale", "clip" or "clip-no-scale".
        kernel_length: with "softmax" the length of sequences.
        epsilon, max_real_Lambda: as the original was built.
        approximate_lag: as in s4.

    Returns:
        The layer, DSS or S4D, and its leaves, float64.

    Raises:
        ValueError: names, shapes or options do not fit, or Re Lambda >= 0: those modes grow, and are not ours.

    >>> arrays = {"D": [[0.5]], "kernel.W": [[[[1.0, 2.0]]]], "kernel.log_dt": [-3.0], "kernel.Lambda": [[-1.0, 3.0]]}
    >>> dss(arrays, kernel_length=100)[0].kernel_length
    100
    """
    checks.choice("version", version, VERSIONS)
    if version == "softmax":
        checks.positive_integer("kernel_length", kernel_length)
    names = under(arrays, prefix)
    axes = {"W": "Directions H N 2", "log_dt": "H 2" if len(np.shape(names.get("kernel/log_dt", ()))) == 2 else "H"}
    found = take_kernel(arrays, prefix, axes | _Lambda_axes(version), D="1 H")
    W = from_pair(found["W"])
    if len(W) > 2:
        raise checks.fail("W", "one channel, in one or two directions", f"{len(W)} channels", "split them")
    Lambda, log_dt = _Lambda(found, max_real_Lambda if version.startswith("clip") else np.inf), found["log_dt"]
    log_step, turn = (log_dt[:, 0], np.exp(log_dt[:, 1] - log_dt[:, 0])) if log_dt.ndim == 2 else (log_dt, None)
    own = Lambda.real + 1j * Lambda.imag * (1.0 if turn is None else turn[:, None])
    weights = W * _gain(version, Lambda, own * np.exp(log_step)[:, None], kernel_length, epsilon)
    if (own == Lambda).all():
        length = kernel_length or 0 if version == "softmax" else 0
        layer: DSS | S4D = DSS(len(log_step), len(Lambda), bidirectional=len(W) == 2, kernel_length=length)
        return layer, _leaves(layer, Lambda, weights, found["D"][0], log_step, approximate_lag)
    layer = S4D(len(log_step), len(Lambda), conj_sym=False, bidirectional=len(W) == 2)
    return layer, _leaves(layer, own, weights, found["D"][0], log_step, approximate_lag)


def _Lambda_axes(version: str) -> dict[str, str]:
    if not version.startswith("exp"):
        return {"Lambda": "N 2"}
    return {"Lambda_log_neg_re": "N", "Lambda_log_im" if version == "exp-re-im" else "Lambda_im": "N"}


def _Lambda(found: Mapping[str, NDArray], largest: float) -> NDArray[np.complex128]:
    if "Lambda" in found:
        return np.minimum(found["Lambda"][:, 0], largest) + 1j * found["Lambda"][:, 1]
    imaginary = found["Lambda_im"] if "Lambda_im" in found else np.exp(found["Lambda_log_im"])
    return -np.exp(found["Lambda_log_neg_re"]) + 1j * imaginary


def _gain(version: str, Lambda: NDArray, z: NDArray, kernel_length: int | None, epsilon: float) -> NDArray:
    """w (H, N), the factor of W in the kernel."""
    if version.endswith("no-scale"):
        return np.ones_like(z)
    if version == "softmax":
        return np.expm1(z) * softmax_weight(Lambda, z, kernel_length or 0, epsilon)
    return np.expm1(z) * np.conj(Lambda) / np.maximum(np.abs(Lambda) ** 2, EPSILON)


def softmax_weight(Lambda: NDArray, z: NDArray, kernel_length: int, epsilon: float = EPSILON) -> NDArray:
    """1/(Lambda (e^{Lz} - 1)), kept finite by epsilon: in "softmax" in the place of zero-order hold's 1/Lambda."""
    divisor = np.expm1(kernel_length * z) * Lambda
    return np.conj(divisor) / (np.abs(divisor) ** 2 + epsilon)


def _leaves(layer: DSS | S4D, Lambda: NDArray, weights: NDArray, D: NDArray, log_step: NDArray, lag: bool) -> Leaves:
    """The leaves with which the kernel is Re(sum_n weights e^{l z_n}), weights (1 or 2, H, N)."""
    c = unit_of_time("Lambda", Lambda)
    Lambda, log_step = Lambda * c, log_step - np.log(c)
    Lambda_bar, gain = zoh(Lambda, np.exp(log_step)[:, None])
    if layer.bidirectional:
        weights, D = one_later(weights, weights[1] / Lambda_bar, np.ones_like(gain), D, layer.weight, lag)
    systems = {"Lambda": Lambda} if isinstance(layer, DSS) else {"Lambda": Lambda, "B": np.ones_like(Lambda)}
    bare = {"Lambda_re": Lambda.real, "Lambda_im": Lambda.imag, "log_step": log_step}
    column = layer.input_column(bare) if isinstance(layer, DSS) else 1.0
    readouts = dict(zip(layer._C_names(), weights / (gain * column), strict=True))
    return leaves_of(layer, {"D": D, "log_step": log_step}, **systems, **readouts)
