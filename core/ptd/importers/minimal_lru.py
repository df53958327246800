"""Checkpoints of NicolasZucchet/minimal-LRU (flax): the linear recurrent unit of Orvieto et al. 2023."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import checks
from ..discretization import phi_1
from ..initialization import Leaves
from ..layers import S5
from ..model import SequenceModel
from .arrays import take
from .flax_stack import FlaxStack
from .s5_flax import s5_leaves

#: Share of the old statistics that flax's BatchNorm keeps by default.
FLAX_MOMENTUM = 0.99


def lru(arrays: Mapping[str, Any], prefix: str = "") -> tuple[S5, Leaves]:
    """A linear recurrent unit as an S5 layer: x_k = lambda x_{k-1} + e^gamma B u_k, y_k = Re(C x_k) + D u_k.

    With lambda = exp(-e^nu + i e^theta) (Orvieto et al. 2023 sec. 3) the unit has no step. The layer's is 1, or less
    where |lambda| is so near 1 that another unit of time is needed, and Lambda step = log lambda, of its values the one
    with Im in [-pi, pi]; zero-order hold multiplies by phi_1(log lambda), which B is therefore divided by, and e^gamma
    goes into B. At another sampling rate (step_scale) the layer does what a continuous system does; the unit has none.

    Args:
        arrays: the checkpoint: nu_log, theta_log, gamma_log (N,), B_re, B_im (N, H), C_re, C_im (H, N), D (H,) below
            prefix.
        prefix: where they are, as "encoder/layers_0/seq".

    Returns:
        The layer, with conj_sym=False, and its leaves, float64.

    Raises:
        ValueError: a name or shape is another.

    >>> one = {"nu_log": [0.0], "theta_log": [0.0], "gamma_log": [0.0], "B_re": [[1.0]], "B_im": [[0.0]]}
    >>> layer, leaves = lru(one | {"C_re": [[1.0]], "C_im": [[0.0]], "D": [0.0]})
    >>> leaves["Lambda_re"].tolist(), leaves["Lambda_im"].tolist(), leaves["log_step"].tolist()
    ([-1.0], [1.0], [0.0])
    """
    modes = dict.fromkeys(("nu_log", "theta_log", "gamma_log"), "N")
    axes = modes | dict.fromkeys(("B_re", "B_im"), "N H") | dict.fromkeys(("C_re", "C_im"), "H N") | {"D": "H"}
    found = take(arrays, prefix, axes)
    phase = np.exp(found["theta_log"])
    log_lambda = -np.exp(found["nu_log"]) + 1j * (phase - 2 * np.pi * np.round(phase / (2 * np.pi)))
    B = (found["B_re"] + 1j * found["B_im"]) * (np.exp(found["gamma_log"]) / phi_1(log_lambda))[:, None]
    layer = S5(d_model=len(found["D"]), d_state=len(log_lambda), conj_sym=False)
    C = found["C_re"] + 1j * found["C_im"]
    return layer, s5_leaves(layer, log_lambda, B, C, found["D"], np.zeros(len(log_lambda)))


def lru_classifier(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    dropout: float = 0.0,
    pooling: str = "mean",
    norm: str = "batch",
    prenorm: bool = False,
    tokens: bool = False,
) -> tuple[SequenceModel, Leaves]:
    """A ClassificationModel of minimal-LRU.

    Its blocks are ours with activation="full_glu"; the original ends in a log-softmax, ours in what goes into it, flat
    where the original has several outputs (multidim). Layers as by lru.

    Args:
        arrays: the checkpoint: params and, with batch norm, batch_stats.
        prefix: where "encoder" and "decoder" are.
        dropout, pooling, norm, prenorm: as the original was built; norm is "batch" or "layer".
        tokens: inputs were one-hot rows, of which the model shall take the numbers.

    Returns:
        The model and its leaves, float64.

    Raises:
        ValueError: names, shapes or options do not fit each other, or ours would differ.

    >>> lru_classifier({}, norm="none")
    Traceback (most recent call last):
    ValueError: norm: expected one of 'batch', 'layer', got 'none'
    """
    checks.choice("norm", norm, ("batch", "layer"))
    stack = FlaxStack(
        norm_name="normalization",
        activation="full_glu",
        prenorm=prenorm,
        batchnorm=norm == "batch",
        dropout=dropout,
        pooling=pooling,
        norm_momentum=FLAX_MOMENTUM,
        tokens=tokens,
    )
    return stack.read(arrays, prefix, lambda place: lru(arrays, place))
