"""Checkpoints of state-spaces/s4, version 4: the diagonal kernel (S4D) and the diagonal-plus-low-rank one (S4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..arrays import from_pair
from ..initialization import Leaves
from ..layers import S4, S4D
from .arrays import under
from .dss_kernel import softmax_weight
from .per_feature import diagonal_layer, low_rank_layer, per_copy, take_kernel

#: Positive numbers from stored ones; the original adds 1e-4 to relu.
TRANSFORMS: dict[str, Callable[[NDArray], NDArray]] = {
    "none": lambda x: x,
    "exp": np.exp,
    "relu": lambda x: np.maximum(x, 0) + 1e-4,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0),
}
DISCRETIZATIONS = ("zoh", "bilinear", "dss")


@dataclass(frozen=True)
class KernelOptions:
    """What the arrays of a kernel do not tell; see s4."""

    disc: str = "zoh"
    dt_transform: str = "exp"
    real_transform: str = "exp"
    imag_transform: str = "none"
    dt_fast: bool = False
    bandlimit: float | None = None
    kernel_length: int | None = None
    approximate_lag: bool = False

    def __post_init__(self) -> None:
        checks.choice("disc", self.disc, DISCRETIZATIONS)
        for name in ("dt_transform", "real_transform", "imag_transform"):
            checks.choice(name, getattr(self, name), TRANSFORMS)
        checks.boolean("dt_fast", self.dt_fast)
        if self.bandlimit is not None:
            checks.positive_number("bandlimit", self.bandlimit)
        if self.disc == "dss":
            checks.positive_integer("kernel_length", self.kernel_length)


def s4(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    disc: str = "zoh",
    dt_transform: str = "exp",
    real_transform: str = "exp",
    imag_transform: str = "none",
    dt_fast: bool = False,
    bandlimit: float | None = None,
    kernel_length: int | None = None,
    approximate_lag: bool = False,
) -> tuple[S4D | S4, Leaves]:
    """The FFTConv of an S4Block, version 4: S4 where the kernel has P, else S4D; y = 2 Re(C x) + D u.

    A = -f(A_real) - i f(A_imag), of which ours keeps the conjugate mode, with B, C and P. Feature h uses copy h % S of
    the S systems; one of them makes the layer shared. Of S4 (always bilinear), C is tuned to a length there,
    C (I - A_bar^l_kernel), and is solved for; l_max, the length at which kernels were cut off, is no property of ours:
    equal up to it. Steps per mode (dt_tie=False) and frequencies above bandlimit go into Lambda, B and C; a real system
    (is_real) has Im Lambda = 0, still with the factor 2. The reversed direction starts one sample later there:
    C_reverse holds C A_bar^-1, and D takes its first term off, which is exact where A_bar has an inverse; that of S4's
    HiPPO matrices, of many features, has none to speak of. Where Re Lambda is above -1e-4 time is measured in another
    unit, as in s5. What follows (activation, output_linear) is left behind.

    Args:
        arrays: the checkpoint: D (1, H), kernel.inv_dt (H, 1), kernel.A_real, kernel.A_imag (S, N/2), kernel.B
            (1, S, N/2, 2), kernel.C (1 or 2, H, N/2, 2), of S4 kernel.P (rank, S, N/2, 2) and kernel.l_kernel ().
        prefix: where they are, as "model.layers.0.layer.layer".
        disc: "zoh", "bilinear" or "dss"; of no meaning for S4.
        dt_transform, real_transform, imag_transform: "none", "exp", "relu", "sigmoid" or "softplus"; the files in
            configs/ have dt_transform="softplus" where the constructor has "exp".
        dt_fast, bandlimit: as the original was built.
        kernel_length: with disc="dss" the length of sequences, over which it normalises.
        approximate_lag: accept that the reversed direction begins at the same sample where A_bar is nearly singular.

    Returns:
        The layer and its leaves, float64.

    Raises:
        ValueError: names, shapes or options do not fit, Re Lambda >= 0, or ours has no such layer: several channels, a
            rank above 2, S4 with a step per mode.

    >>> kernel = {"inv_dt": [[-3.0]], "A_real": [[0.0]], "A_imag": [[3.0]], "B": [[[[1.0, 0.5]]]]}
    >>> layer, leaves = s4({"D": [[0.5]], "kernel": kernel | {"C": [[[[1.0, 2.0]]]]}})
    >>> layer.kind, leaves["Lambda_im"].tolist(), leaves["C_im"].tolist()
    ('s4d', [3.0], [[-2.0]])
    """
    options = KernelOptions(
        disc, dt_transform, real_transform, imag_transform, dt_fast, bandlimit, kernel_length, approximate_lag
    )
    return layer_of_kernel(_take(arrays, prefix), options)


def _take(arrays: Mapping[str, Any], prefix: str) -> dict[str, NDArray]:
    """D and the kernel's arrays by their own names."""
    names = {name.removeprefix("kernel/"): value for name, value in under(arrays, prefix).items()}
    pair = " 2" if "A_imag" in names or len(np.shape(names.get("C", ()))) == 4 else ""
    axes = {"A_real": "S N", "B": f"1 S N{pair}", "C": f"Directions H N{pair}"}
    axes |= {"A_imag": "S N"} if pair else {}
    axes |= {"inv_dt": "H 1" if np.shape(names.get("inv_dt", ()))[1:] == (1,) else "H N"}
    axes |= {"P": "Rank S N 2", "l_kernel": ""} if "P" in names else {}
    return take_kernel(arrays, prefix, axes)


def layer_of_kernel(found: Mapping[str, NDArray], options: KernelOptions) -> tuple[S4D | S4, Leaves]:
    """The layer from the kernel's arrays, named as in version 4."""
    if len(found["D"]) != 1 or len(found["C"]) > 2:
        got = f"D with {len(found['D'])} rows and C with {len(found['C'])}"
        raise checks.fail("prefix", "one channel, in one or two directions", got, "import every channel by itself")
    D, dt, (Lambda, B, C) = found["D"][0], _steps(found["inv_dt"], options), _system(found, options)
    if options.bandlimit is not None:
        C = C * (dt * np.abs(Lambda.imag) / (2 * np.pi) < options.bandlimit / 2)
    if "P" in found:
        return _low_rank(found, Lambda, B, C, D, dt, options.approximate_lag)
    if dt.shape[1] > 1:  # a step per mode: Lambda dt and B dt in units of the feature's mean step
        per_mode = dt / dt.mean(axis=1, keepdims=True)
        Lambda, B, dt = Lambda * per_mode, B * per_mode, dt.mean(axis=1, keepdims=True)
    softmax, lag = options.disc == "dss", options.approximate_lag
    if softmax:
        C = C * Lambda * softmax_weight(Lambda, Lambda * dt, options.kernel_length or 0)
    rule = "zoh" if softmax else options.disc
    log_step = np.log(dt[:, 0])
    return diagonal_layer(Lambda, B, C, D, log_step, discretization=rule, conj_sym=not softmax, approximate_lag=lag)


def _steps(inv_dt: NDArray, options: KernelOptions) -> NDArray[np.float64]:
    """Step sizes (H, 1) or (H, N)."""
    dt = TRANSFORMS[options.dt_transform](np.sinh(inv_dt) if options.dt_fast else inv_dt)
    if not dt.min() > 0:
        raise checks.fail("inv_dt", "positive steps", f"{dt.min():.3g}", "another dt_transform")
    return dt


def _system(found: Mapping[str, NDArray], options: KernelOptions) -> tuple[NDArray, NDArray, NDArray]:
    """Lambda and B, (N,) or (H, N), and C (directions, H, N), complex."""
    H, Lambda = found["C"].shape[1], -TRANSFORMS[options.real_transform](found["A_real"]) + 0j
    if "A_imag" not in found:
        return per_copy(Lambda, H), per_copy(found["B"][0] + 0j, H), found["C"] + 0j
    Lambda = Lambda - 1j * TRANSFORMS[options.imag_transform](found["A_imag"])
    return per_copy(Lambda, H), per_copy(from_pair(found["B"])[0], H), from_pair(found["C"])


def _low_rank(
    found: Mapping[str, NDArray],
    Lambda: NDArray,
    B: NDArray,
    C: NDArray,
    D: NDArray,
    dt: NDArray,
    approximate_lag: bool,
) -> tuple[S4, Leaves]:
    if len(found["P"]) > 2:
        raise checks.fail("P", "rank 1 or 2", len(found["P"]), "HiPPO matrices need no more")
    if dt.shape[1] > 1:
        expected = "one step per feature with a low-rank term"
        raise checks.fail("inv_dt", expected, f"{dt.shape[1]} (dt_tie=False)", "S4D may have more")
    P = per_copy(np.moveaxis(from_pair(found["P"]), 0, -1), len(D))
    tuned_to, log_step = int(found["l_kernel"]), np.log(dt[:, 0])
    return low_rank_layer(Lambda, P, B, C, D, log_step, tuned_to=tuned_to, approximate_lag=approximate_lag)
