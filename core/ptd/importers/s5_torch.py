"""Checkpoints of i404788/s5-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import checks
from ..arrays import from_pair
from ..initialization import Leaves
from ..layers import S5
from .arrays import take, two_readouts, under
from .s5_flax import s5_leaves


def s5_pytorch(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    discretization: str = "zoh",
    liquid: bool = False,
    degree: int = 1,
) -> tuple[S5, Leaves]:
    """The S5SSM of an S5 layer of s5-pytorch: all modes are stored, y_k = Re(C x_k) + D u_k (S5 eq. 3).

    Lambda and C are complex leaves there and pairs of real ones here. C with 2 P columns makes the layer bidirectional;
    the last P are of the reversed run. Where Re Lambda is above -1e-4 time is measured in another unit, as in s5. The
    block around it (S5Block) adds its residual after the norm, which no SequenceModel does.

    Args:
        arrays: the checkpoint: complex Lambda (P,) and C (H, P), B (P, H, 2), D (H,), log_step (P,) below prefix.
        prefix: where they are: "seq" for the state of an S5, "s5.seq" of an S5Block.
        discretization: "zoh", always that of S5 and S5Block, or "bilinear".
        liquid, degree: as the original was built; the arrays do not tell, and others than False and 1 are refused.

    Returns:
        The layer, with conj_sym=False, and its leaves, float64.

    Raises:
        ValueError: a name or shape is another, Re Lambda >= 0, or the system is liquid, of higher degree or factorized.

    >>> arrays = {"seq.Lambda": [-0.5 + 1j], "seq.B": [[[1.0, 2.0]]], "seq.C": [[1j]], "seq.D": [0.0]}
    >>> layer, leaves = s5_pytorch(arrays | {"seq.log_step": [-3.0]}, "seq")
    >>> layer.conj_sym, leaves["C_im"].tolist()
    (False, [[1.0]])
    """
    if liquid:
        raise checks.fail("liquid", "False: a time-invariant system", True, "its transition depends on the input")
    if degree != 1:
        raise checks.fail("degree", "1: an input gain from the step", degree, "its powers follow no step size")
    names = under(arrays, prefix)
    if {"BH", "BP", "CH", "CP"} <= names.keys():
        remedy = "pass B = BP BH^T and C = CH^T CP in their place"
        raise checks.fail("prefix", "B and C", f"their factors BH, BP, CH, CP at {prefix!r} (factor_rank)", remedy)
    two = two_readouts(names, "Lambda")
    C_axes = "complex H 2P" if two else "complex H P"
    axes = {"Lambda": "complex P", "B": "P H 2", "C": C_axes, "D": "H", "log_step": "P"}
    found = take(arrays, prefix, axes)
    layer = S5(
        d_model=len(found["D"]),
        d_state=len(found["Lambda"]),
        discretization=discretization,
        conj_sym=False,
        bidirectional=two,
    )
    system = (found["Lambda"], from_pair(found["B"]), found["C"], found["D"], found["log_step"])
    return layer, s5_leaves(layer, *system)
