"""Checkpoints of state-spaces/s4, version 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..initialization import Leaves
from ..layers import S4, S4D
from .arrays import joined, under
from .per_feature import take_kernel
from .s4_kernel import TRANSFORMS, KernelOptions, layer_of_kernel

PLACE = "kernel/kernel"


def s4_v3(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    disc: str = "bilinear",
    real_type: str = "exp",
    bandlimit: float | None = None,
    kernel_length: int | None = None,
    approximate_lag: bool = False,
) -> tuple[S4D | S4, Leaves]:
    """The system of an S4 of version 3, as by s4: Lambda = -f(inv_w_real) + i w_imag, step = exp(log_dt).

    Im Lambda has the opposite sign of version 4's. The diagonal kernel calls them inv_A_real and A_imag, and keeps an
    array A that it does not use. Only there does relu add 1e-4.

    Args:
        arrays: the checkpoint: D (1, H), kernel.kernel.log_dt (H,), kernel.kernel.C (1 or 2, H, N/2, 2); of S4
            inv_w_real (or log_w_real), w_imag (S, N/2), B (1, S, N/2, 2), P (rank, S, N/2, 2), L (); of S4D inv_A_real,
            A_imag (S, N/2), B (S, N/2, 2).
        prefix: where they are, as "model.layers.0.layer".
        disc, real_type, bandlimit: as the original was built; disc is of no meaning for S4.
        kernel_length: with disc="dss" the length of sequences, over which it normalises.
        approximate_lag: as in s4.

    Returns:
        The layer and its leaves, float64.

    Raises:
        ValueError: as in s4.

    >>> kernel = {"log_dt": [-3.0], "inv_A_real": [[0.0]], "A_imag": [[3.0]], "B": [[[1.0, 0.5]]]}
    >>> layer, leaves = s4_v3({"D": [[0.5]], "kernel.kernel": kernel | {"C": [[[[1.0, 2.0]]]]}})
    >>> layer.discretization, leaves["Lambda_im"].tolist(), leaves["C_im"].tolist()
    ('bilinear', [3.0], [[2.0]])
    """
    checks.choice("real_type", real_type, TRANSFORMS)
    given: dict[str, Any] = {"bandlimit": bandlimit, "kernel_length": kernel_length, "approximate_lag": approximate_lag}
    options = KernelOptions(disc, real_transform="none", **given)
    names = under(arrays, joined(prefix, PLACE))
    found = _low_rank(arrays, prefix, names) if "P" in names else _diagonal(arrays, prefix, names)
    found["A_real"] = TRANSFORMS[real_type](found["A_real"])
    if real_type == "relu" and "P" in names:
        found["A_real"] = found["A_real"] - TRANSFORMS["relu"](np.zeros(()))
    found["A_imag"], found["inv_dt"] = -found["A_imag"], found["log_dt"][:, None]
    return layer_of_kernel(found, options)


def _low_rank(arrays: Mapping[str, Any], prefix: str, names: Mapping[str, Any]) -> dict[str, NDArray]:
    """The kernel's arrays, Lambda and the length by their names in version 4."""
    real = "log_w_real" if "log_w_real" in names else "inv_w_real"
    axes = {real: "S N", "w_imag": "S N", "B": "1 S N 2", "C": "Directions H N 2", "log_dt": "H"}
    found = take_kernel(arrays, prefix, axes | {"P": "Rank S N 2", "L": ""}, place=PLACE)
    return found | {"A_real": found[real], "A_imag": found["w_imag"], "l_kernel": found["L"]}


def _diagonal(arrays: Mapping[str, Any], prefix: str, names: Mapping[str, Any]) -> dict[str, NDArray]:
    axes = {"inv_A_real": "S N", "A_imag": "S N", "B": "S N 2", "C": "Directions H N 2", "log_dt": "H"}
    unused = {"A": "S N 2"} if "A" in names else {}
    found = take_kernel(arrays, prefix, axes | unused, place=PLACE)
    return found | {"A_real": found["inv_A_real"], "B": found["B"][None]}
