"""Checkpoints of state-spaces/s4's minimal S4D (models/s4/s4d.py) and of the classifier in its example.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import checks
from ..arrays import from_pair
from ..initialization import Leaves
from ..layers import S4D
from ..model import SequenceModel
from .arrays import joined, take, under
from .per_feature import diagonal_layer, take_kernel

KERNEL = {"log_A_real": "H N", "A_imag": "H N", "C": "H N 2", "log_dt": "H"}


def s4d(arrays: Mapping[str, Any], prefix: str = "") -> tuple[S4D, Leaves]:
    """The system of a minimal S4D: A = -exp(log_A_real) + i A_imag, zero-order hold, y = 2 Re(C x) + D u (S4D eq. 2).

    The equations are ours, with B = 1. What follows it there, gelu and output_linear, is no part of a layer and left
    behind; s4d_classifier takes it along. Modes with Im Lambda < 0, to which training may come, are replaced by their
    conjugates, and where Re Lambda is above -1e-4 time is measured in another unit, as in s5.

    Args:
        arrays: the checkpoint: D (H,), kernel.log_A_real, kernel.A_imag (H, N/2), kernel.C (H, N/2, 2), kernel.log_dt
            (H,) below prefix.
        prefix: where they are, as "s4_layers.0".

    Returns:
        The layer and its leaves, float64.

    Raises:
        ValueError: a name or shape is another.

    >>> kernel = {"log_A_real": [[0.0]], "A_imag": [[3.0]], "C": [[[1.0, 2.0]]], "log_dt": [-3.0]}
    >>> layer, leaves = s4d({"D": [0.5], "kernel": kernel})
    >>> layer.d_state, leaves["Lambda_re"].tolist(), leaves["B_re"].tolist()
    (2, [[-1.0]], [[1.0]])
    """
    found = take_kernel(arrays, prefix, KERNEL, D="H")
    Lambda = -np.exp(found["log_A_real"]) + 1j * found["A_imag"]
    return diagonal_layer(Lambda, np.ones_like(Lambda), from_pair(found["C"])[None], found["D"], found["log_dt"])


def s4d_classifier(
    arrays: Mapping[str, Any],
    prefix: str = "",
    *,
    dropout: float = 0.2,
    prenorm: bool = False,
) -> tuple[SequenceModel, Leaves]:
    """The S4Model of example.py: blocks of minimal S4D, gelu, a gated map and layer norm, mean pooling.

    Its gated map is our activation="full_glu": the first H rows of output_linear are the value, the others the gate.
    Its gelu is by erf. Layers as by s4d.

    Args:
        arrays: the checkpoint: encoder, s4_layers, norms, decoder below prefix.
        prefix: where they are: "model" in the files that example.py writes.
        dropout, prenorm: as the original was built.

    Returns:
        The model and its leaves, float64.

    Raises:
        ValueError: a name or shape is another.
    """
    blocks = _n_blocks(arrays, prefix)
    leaves = {
        f"{name}.{part}": value
        for name in ("encoder", "decoder")
        for part, value in take(arrays, joined(prefix, name), {"weight": "O I", "bias": "O"}).items()
    }
    layers = []
    for i in range(blocks):
        layer, own = s4d(arrays, joined(prefix, f"s4_layers/{i}"))
        layers.append(layer)
        leaves |= {f"blocks.{i}.layer.{name}": value for name, value in own.items()}
        leaves |= {f"blocks.{i}.{name}": value for name, value in _end_of_block(arrays, prefix, i).items()}
    model = SequenceModel(
        layers[0],
        n_layers=blocks,
        d_input=leaves["encoder.weight"].shape[1],
        d_output=leaves["decoder.weight"].shape[0],
        prenorm=prenorm,
        activation="full_glu",
        gelu="erf",
        dropout=dropout,
        tie_dropout=True,  # the original drops whole features over time
    )
    model.check(leaves)
    return model, leaves


def _n_blocks(arrays: Mapping[str, Any], prefix: str) -> int:
    found = {"/".join(name.split("/")[:2]) for name in under(arrays, prefix)}
    numbers = {name.removeprefix("s4_layers/") for name in found if name.startswith("s4_layers/")}
    count = max(1, len(numbers))
    expected = {f"{part}/{i}" for part in ("s4_layers", "norms") for i in range(count)}
    expected |= {f"{part}/{name}" for part in ("encoder", "decoder") for name in ("weight", "bias")}
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        got = f"no {', '.join(missing)}" if missing else f"also {', '.join(extra)}"
        remedy = "see ptd import FILE"
        raise checks.fail("prefix", "encoder, s4_layers, norms and decoder below it", f"{got} at {prefix!r}", remedy)
    return count


def _end_of_block(arrays: Mapping[str, Any], prefix: str, i: int) -> Leaves:
    """The leaves of block i besides its layer's."""
    norm = take(arrays, joined(prefix, f"norms/{i}"), {"weight": "H", "bias": "H"})
    end = take(arrays, joined(prefix, f"s4_layers/{i}/output_linear/0"), {"weight": "2H H 1", "bias": "2H"})
    value, gate = np.split(end["weight"][..., 0], 2)
    value_bias, gate_bias = np.split(end["bias"], 2)
    maps = {"value.weight": value, "value.bias": value_bias, "gate.weight": gate, "gate.bias": gate_bias}
    return {"norm.scale": norm["weight"], "norm.bias": norm["bias"]} | maps
