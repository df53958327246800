"""Checkpoints of lindermanlab/S5 (flax)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..arrays import from_pair
from ..initialization import Leaves
from ..layers import S5
from ..model import SequenceModel
from .arrays import leaves_of, take, two_readouts, under, unit_of_time, upper_half
from .flax_stack import FlaxStack


def s5(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    conj_sym: bool = True,
    discretization: str = "zoh",
    clip_eigs: bool = False,
    step_rescale: float = 1.0,
) -> tuple[S5, Leaves]:
    """An S5 layer of lindermanlab/S5: x_k = Lambda_bar x_{k-1} + B_bar u_k, y_k = 2 Re(C x_k) + D u_k (S5 eq. 3).

    The equations are ours. Carried over: of each conjugate pair the original keeps the mode with Im Lambda < 0, ours
    the other, with B and C conjugated; step_rescale goes into log_step; where Re Lambda is above -1e-4, at which our
    layers cut it off, time is measured in another unit (see ptd.importers.arrays.unit_of_time). Blocks of the initial
    state matrix leave no trace in the arrays. Two readouts, C1 and C2 or C with 2 P columns, make it bidirectional.

    Args:
        arrays: the checkpoint: Lambda_re, Lambda_im (P,), B (P, H, 2), C (H, P, 2), D (H,), log_step (P, 1) below
            prefix.
        prefix: where they are, as "encoder/layers_0/seq".
        conj_sym: as the original was built: one mode of each pair is stored.
        discretization: "zoh" or "bilinear".
        clip_eigs: Re Lambda counts as at most -1e-4, as it does in our layers.
        step_rescale: factor on all steps.

    Returns:
        The layer and its leaves, float64.

    Raises:
        ValueError: a name or shape is another, or Re Lambda >= 0 without clip_eigs.

    >>> ones = {"Lambda_re": [-0.5], "Lambda_im": [-1.0], "B": [[[1.0, 2.0]]], "C": [[[1.0, 0.0]]]}
    >>> layer, leaves = s5(ones | {"D": [0.0], "log_step": [[-3.0]]})
    >>> layer.d_state, leaves["Lambda_im"].tolist(), leaves["B_im"].tolist()
    (2, [1.0], [[-2.0]])
    """
    checks.boolean("clip_eigs", clip_eigs)
    checks.positive_number("step_rescale", step_rescale)
    found = take(arrays, prefix, _axes(under(arrays, prefix)))
    Lambda, P = found["Lambda_re"] + 1j * found["Lambda_im"], len(found["Lambda_re"])
    C = np.concatenate([from_pair(found[name]) for name in ("C", "C1", "C2") if name in found], axis=-1)
    layer = S5(
        d_model=len(found["D"]),
        d_state=2 * P if conj_sym else P,
        discretization=discretization,
        conj_sym=conj_sym,
        bidirectional=C.shape[-1] == 2 * P,
    )
    log_step = found["log_step"][:, 0] + np.log(step_rescale)
    return layer, s5_leaves(layer, Lambda, from_pair(found["B"]), C, found["D"], log_step, clipped=clip_eigs)


def _axes(names: Mapping[str, Any]) -> dict[str, str]:
    """The arrays of the layer, by how it was initialised."""
    system = {"Lambda_re": "P", "Lambda_im": "P", "B": "P H 2", "D": "H", "log_step": "P 1"}
    if "C1" in names:
        return system | {"C1": "H P 2", "C2": "H P 2"}
    return system | {"C": "H 2P 2" if two_readouts(names, "Lambda_re") else "H P 2"}


def s5_leaves(
    layer: S5,
    Lambda: NDArray[np.complex128],
    B: NDArray[np.complex128],
    C: NDArray[np.complex128],
    D: NDArray[np.float64],
    log_step: NDArray[np.float64],
    *,
    clipped: bool = False,
) -> Leaves:
    """The leaves of an S5 layer from its system, in a unit of time that it can have.

    Args:
        layer: its description.
        Lambda: (P,).
        B: (P, H).
        C: (H, P), or (H, 2 P) with the readout of the reversed run last.
        D, log_step: (H,) and (P,).
        clipped: Re Lambda counts as at most -1e-4 in the source as well.
    """
    if layer.conj_sym:
        Lambda, B, C = upper_half_of(Lambda, B, C)
    c = 1.0 if clipped else unit_of_time("Lambda", Lambda)
    readouts = dict(zip(layer._C_names(), np.split(C, C.shape[-1] // len(Lambda), axis=-1), strict=True))
    real = {"D": D, "log_step": log_step - np.log(c)}
    return leaves_of(layer, real, Lambda=Lambda * c, B=B * c, **readouts)


def upper_half_of(Lambda: NDArray, B: NDArray, C: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """upper_half for B (P, H) and C (H, P) or (H, 2 P)."""
    Lambda_upper, rows, *columns = upper_half(Lambda, B.T, *np.split(C, C.shape[-1] // len(Lambda), axis=-1))
    return Lambda_upper, rows.T, np.concatenate(columns, axis=-1)


def s5_classifier(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    activation: str = "gelu",
    dropout: float = 0.2,
    mode: str = "pool",
    prenorm: bool = False,
    batchnorm: bool = False,
    bn_momentum: float = 0.9,
    padded: bool = True,
    tokens: bool = False,
    conj_sym: bool = True,
    discretization: str = "zoh",
    clip_eigs: bool = False,
    step_rescale: float = 1.0,
) -> tuple[SequenceModel, Leaves]:
    """A ClassificationModel or RetrievalModel of lindermanlab/S5, whose decoder tells which.

    Blocks are ours: norm, S5, gate of gelu's tanh form, residual. The original ends in a log-softmax, ours in what goes
    into it. Kernels of Dense are transposed. In a RetrievalModel the second half of the batch holds the partners of the
    first; ours takes (..., 2, L). Layers as by s5.

    Args:
        arrays: the checkpoint: params and, with batch norm, batch_stats.
        prefix: where "encoder" and "decoder" are.
        activation, dropout, mode, prenorm, batchnorm, bn_momentum: as the original was built.
        padded: whether it was given sequences of several lengths. The original's layers then read the padding, which
            tells in a bidirectional model alone; ours begins the reversed run at each sequence's end, so that such a
            model is refused. Pass False for sequences of one length, or to have it so.
        tokens: inputs were one-hot rows, of which the model shall take the numbers.
        conj_sym, discretization, clip_eigs, step_rescale: as in s5.

    Returns:
        The model and its leaves, float64.

    Raises:
        ValueError: names, shapes or options do not fit each other, or ours would differ.

    >>> s5_classifier({}, mode="max")
    Traceback (most recent call last):
    ValueError: mode: expected one of 'last', 'pool', got 'max'
    """
    stack = FlaxStack(
        norm_name="norm",
        activation=activation,
        prenorm=prenorm,
        batchnorm=batchnorm,
        dropout=dropout,
        pooling=_pooling(mode),
        norm_momentum=bn_momentum,
        tokens=tokens,
    )
    of_layer: dict[str, Any] = {"conj_sym": conj_sym, "discretization": discretization}
    of_layer |= {"clip_eigs": clip_eigs, "step_rescale": step_rescale}
    model, leaves = stack.read(arrays, prefix, lambda place: s5(arrays, place, **of_layer))
    checks.boolean("padded", padded)
    if padded and model.layer.bidirectional:
        remedy = "padded=False has it begin at each sequence's end, the same where all are of one length"
        raise checks.fail("padded", "False: the original's reversed run begins in the padding", True, remedy)
    return model, leaves


def _pooling(mode: str) -> str:
    checks.choice("mode", mode, ("pool", "last"))
    return "mean" if mode == "pool" else mode
