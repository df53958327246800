"""Checkpoints of state-spaces/s4, versions 4 and 3: the diagonal kernel (S4D) and the diagonal-plus-low-rank one (S4)."""

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
from .arrays import take, under
from .dss import softmax_scale
from .per_feature import diagonal_layer, low_rank_layer, per_copy, without_output

#: Positive numbers from stored ones; the original adds 1e-4 to relu.
TRANSFORMS: dict[str, Callable[[NDArray], NDArray]] = {
    "none": lambda x: x,
    "exp": np.exp,
    "relu": lambda x: np.maximum(x, 0) + 1e-4,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0),
}
DISCRETIZATIONS = ("zoh", "bilinear", "dss")
#: Names of version 3 and what they became; Im Lambda changed its sign.
V3 = {"log_dt": "inv_dt", "inv_w_real": "A_real", "log_w_real": "A_real", "w_imag": "A_imag", "L": "l_kernel"}


@dataclass(frozen=True)
class Options:
    """What the arrays of a kernel do not tell."""

    disc: str
    dt_transform: str
    real_transform: str
    imag_transform: str
    dt_fast: bool
    bandlimit: float | None
    kernel_length: int | None

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
) -> tuple[S4D | S4, Leaves]:
    """The FFTConv of an S4Block, version 4: S4 where the kernel has P, else S4D; y = 2 Re(C x) + D u.

    A = -f(A_real) - i f(A_imag), of which ours keeps the conjugate mode, with B, C and P. Feature h uses copy h % S of
    the S systems; one of them makes the layer shared. Of S4 (always bilinear), C is tuned to a length there,
    C (I - A_bar^l_kernel), and is solved for; l_max, the length at which kernels were cut off, is no property of ours:
    equal up to it. Steps per mode (dt_tie=False) and frequencies above bandlimit go into Lambda, B and C; a real system
    (is_real) has Im Lambda = 0, still with the factor 2. The reversed direction starts one sample later there: C_reverse
    holds C A_bar^-1, and D takes its first term off, which is exact. Where Re Lambda is above -1e-4 time is measured
    in another unit, as in s5. What follows (activation, output_linear) is left behind.

    Args:
        arrays: the checkpoint: D (1, H), kernel.inv_dt (H, 1), kernel.A_real, kernel.A_imag (S, N/2), kernel.B
            (1, S, N/2, 2), kernel.C (1 or 2, H, N/2, 2), of S4 kernel.P (rank, S, N/2, 2) and kernel.l_kernel ().
        prefix: where they are, as "model.layers.0.layer.layer".
        disc: "zoh", "bilinear" or "dss"; of no meaning for S4.
        dt_transform, real_transform, imag_transform: "none", "exp", "relu", "sigmoid" or "softplus"; the files in
            configs/ have dt_transform="softplus" where the constructor has "exp".
        dt_fast, bandlimit: as the original was built.
        kernel_length: with disc="dss" the length of sequences, over which it normalises.

    Returns:
        The layer and its leaves, float64.

    Raises:
        ValueError: names, shapes or options do not fit, Re Lambda >= 0, or ours has no such layer: several channels, a
            rank above 2, S4 with a step per mode.

    >>> kernel = {"inv_dt": [[-3.0]], "A_real": [[0.0]], "A_imag": [[3.0]], "B": [[[[1.0, 0.5]]]], "C": [[[[1.0, 2.0]]]]}
    >>> layer, leaves = s4({"D": [[0.5]], "kernel": kernel})
    >>> layer.kind, leaves["Lambda_im"].tolist(), leaves["C_im"].tolist()
    ('s4d', [3.0], [[-2.0]])
    """
    options = Options(disc, dt_transform, real_transform, imag_transform, dt_fast, bandlimit, kernel_length)
    return _layer(_take(arrays, prefix, "kernel"), options)


def s4_v3(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    disc: str = "bilinear",
    real_transform: str = "exp",
    bandlimit: float | None = None,
) -> tuple[S4D | S4, Leaves]:
    """The system of an S4 of version 3 (real and imaginary parts of Lambda apart), as by s4.

    Its names are others, Im Lambda has the opposite sign, and steps are always exp(log_dt).

    Args:
        arrays: the checkpoint: D, kernel.kernel.log_dt (H,), kernel.kernel.log_w_real or inv_w_real, w_imag, B, C, and
            of S4 P and L, shaped as in s4.
        prefix: where they are, as "model.layers.0.layer".
        disc, bandlimit: as in s4.
        real_transform: real_type there.

    Returns:
        The layer and its leaves, float64.

    Raises:
        ValueError: as in s4.

    >>> kernel = {"log_dt": [-3.0], "log_w_real": [[0.0]], "w_imag": [[3.0]], "B": [[[[1.0, 0.5]]]]}
    >>> layer, leaves = s4_v3({"D": [[0.5]], "kernel.kernel": kernel | {"C": [[[[1.0, 2.0]]]]}})
    >>> layer.discretization, leaves["Lambda_im"].tolist(), leaves["C_im"].tolist()
    ('bilinear', [3.0], [[2.0]])
    """
    options = Options(disc, "exp", real_transform, "none", False, bandlimit, None)
    found = {V3.get(name, name): value for name, value in _take(arrays, prefix, "kernel/kernel").items()}
    found |= {"inv_dt": found["inv_dt"][:, None]}
    return _layer(found | {"A_imag": -found["A_imag"]} if "A_imag" in found else found, options)


def _take(arrays: Mapping[str, Any], prefix: str, kernel: str) -> dict[str, NDArray]:
    """D and the kernel's arrays by their own names."""
    names = {name.removeprefix(f"{kernel}/"): value for name, value in under(arrays, prefix).items()}
    v3 = kernel == "kernel/kernel"
    pair = " 2" if "A_imag" in names or "w_imag" in names or np.ndim(names.get("C")) == 4 else ""
    dt = np.shape(names.get("inv_dt", ()))
    axes = {"A_real": "S N", "B": f"1 S N{pair}", "C": f"Ch H N{pair}"}
    axes |= {"A_imag": "S N"} if pair else {}
    axes |= {"inv_dt": "H 1" if dt[1:] == (1,) else "H N"}
    axes |= {"P": "R S N 2", "l_kernel": ""} if "P" in names else {}
    if v3:
        stored = "inv_w_real" if "inv_w_real" in names else "log_w_real"
        back = {new: old for old, new in V3.items()} | {"A_real": stored}
        axes = {back.get(name, name): letters for name, letters in axes.items()} | {"log_dt": "H"}
    wanted = {"D": "Channels H"} | {f"{kernel}/{name}": letters for name, letters in axes.items()}
    found = take(without_output(arrays, prefix), prefix, wanted)
    return {name.removeprefix(f"{kernel}/"): value for name, value in found.items()}


def _layer(found: dict[str, NDArray], options: Options) -> tuple[S4D | S4, Leaves]:
    """The layer from the kernel's arrays, named as in version 4."""
    if len(found["D"]) != 1 or len(found["C"]) > 2:
        got = f"D with {len(found['D'])} and C with {len(found['C'])}"
        raise checks.fail("prefix", "one channel, in one or two directions", got, "every channel is a layer: split them")
    D, H = found["D"][0], found["D"].shape[1]
    Lambda = -TRANSFORMS[options.real_transform](found["A_real"]) + 0j
    paired = "A_imag" in found
    if paired:
        Lambda = Lambda - 1j * TRANSFORMS[options.imag_transform](found["A_imag"])
    B, C = (from_pair(found[name]) if paired else found[name] + 0j for name in ("B", "C"))
    Lambda, B = per_copy(Lambda, H), per_copy(B[0], H)
    stored = np.sinh(found["inv_dt"]) if options.dt_fast else found["inv_dt"]
    dt = TRANSFORMS[options.dt_transform](stored)
    if not dt.min() > 0:
        raise checks.fail("inv_dt", "positive steps", f"{dt.min():.3g}", "another dt_transform")
    if options.bandlimit is not None:
        C = C * (dt * np.abs(Lambda.imag) / (2 * np.pi) < options.bandlimit / 2)
    if "P" in found:
        return _low_rank(found, Lambda, B, C, D, dt)
    if dt.shape[1] > 1:  # a step per mode: Lambda dt and B dt in units of the feature's mean step
        per_mode = dt / dt.mean(axis=1, keepdims=True)
        Lambda, B, dt = Lambda * per_mode, B * per_mode, dt.mean(axis=1, keepdims=True)
    if options.disc != "dss":
        return diagonal_layer(Lambda, B, C, D, np.log(dt[:, 0]), discretization=options.disc)
    C = C * softmax_scale(Lambda, dt, options.kernel_length or 0)
    return diagonal_layer(Lambda, B, C, D, np.log(dt[:, 0]), conj_sym=False)


def _low_rank(
    found: dict[str, NDArray], Lambda: NDArray, B: NDArray, C: NDArray, D: NDArray, dt: NDArray
) -> tuple[S4, Leaves]:
    if len(found["P"]) > 2:
        raise checks.fail("P", "rank 1 or 2", len(found["P"]), "HiPPO matrices need no more")
    if dt.shape[1] > 1:
        raise checks.fail("inv_dt", "one step per feature with a low-rank term", f"{dt.shape[1]} (dt_tie=False)")
    P = per_copy(np.moveaxis(from_pair(found["P"]), 0, -1), len(D))
    return low_rank_layer(Lambda, P, B, C, D, np.log(dt[:, 0]), int(found["l_kernel"]))
