"""The scan form of S5 on real planes, both directions from one drive, for processors whose scan kernel is fast.

Products with B and C take T H^2 operations a sample less than the chunked form, which pays where modes are few beside
features; states are written once per sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ptd import sequences
from ptd.arrays import Array, astype
from ptd.kernels import Kernels
from ptd.layers import S5, Layer

from . import pallas_gpu
from .blocks import beside


def fits(layer: Layer, kernels: Kernels, recurrence: str, L: int, call: Mapping[str, Any]) -> bool:
    """Whether a call of Layer.apply runs here."""
    given = {name for name, value in call.items() if value is not None and value is not False}
    return (
        isinstance(layer, S5)
        and recurrence == "pallas"
        and layer.form_of(kernels, **call) == "chunked"
        and kernels.chunk_length(layer, L) == 1
        and given <= {"form", "lengths", "step_scale"}
    )


def apply(
    layer: S5,
    params: Mapping[str, Array],
    u: Array,
    *,
    lengths: Array | None = None,
    step_scale: Array | float | None = None,
    interpret: bool = False,
) -> Any:
    """Layer.apply in its scan form, from zero and without the final state."""
    signal = layer.signal(u, lengths, None, step_scale, params["log_step"].dtype)
    Lambda_bar, gain = layer.discretized(params, signal.step_scale)
    into = beside(layer.input_rows(params, gain), 1)
    names = ("C", "C_reverse") if layer.bidirectional else ("C",)
    out = jnp.concatenate([layer.weight * beside(jnp.conj(layer.complex_leaf(params, name)).T, 0) for name in names])
    *batch, L, _ = u.shape
    drive = (signal.u @ astype(into, u)).reshape(math.prod(batch), L, 2, layer.modes)
    states = pallas_gpu.both(Lambda_bar, drive, len(names), interpret)
    y = states.reshape(*batch, L, len(out)) @ astype(out, u)
    if layer.skip:
        y = y + astype(params["D"], u) * signal.u
    return sequences.mask(y, signal.lengths)
