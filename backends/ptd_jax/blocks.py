"""The scan form of a diagonal layer in blocks of time, for processors with caches.

Drive, states and output of one block stay in the cache, and the gradient recomputes them from the state that enters the
block: measured on a CPU, moving states through memory costs more than computing them twice.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ptd import sequences
from ptd.arrays import Array, as_pair, astype, from_pair
from ptd.layers import Layer
from ptd.layers.diagonal import DiagonalLayer

from .recurrences import loop

#: Complex states of one block, in all: half a megabyte in single precision.
BLOCK_STATES = 2**16
SHORTEST, LONGEST = 32, 512


def block_length(layer: Layer, shape: tuple[int, ...]) -> int:
    """T, the samples per block, for an input of shape (..., L, H); the whole length where blocks would not pay.

    A divisor of L where there is one, so that nothing is padded.
    """
    L, states = shape[-2], max(1, _product(shape[:-2]) * _product(layer.state_axes))
    T = max(SHORTEST, min(LONGEST, BLOCK_STATES // states))
    if L < 2 * T:
        return L
    return next((t for t in range(T, T // 2, -1) if L % t == 0), T)


def fits(layer: Layer, shape: tuple[int, ...], T: int, call: Mapping[str, Any]) -> bool:
    """Whether the call can run in blocks of T: a time-invariant diagonal layer whose states end where blocks end."""
    steps, state = call.get("step_scale"), call.get("state") is not None
    lengths, padded = call.get("lengths") is not None, shape[-2] % T > 0
    return (
        isinstance(layer, DiagonalLayer)
        and shape[-2] > T
        and call.get("resets") is None
        and (steps is None or jnp.ndim(steps) == 0)
        and not (call.get("return_state", False) and (lengths or padded))
        # From right to left a state would enter at the end of the padding.
        and not (layer.bidirectional and state and (lengths or padded))
    )


def apply(
    layer: DiagonalLayer,
    params: Mapping[str, Array],
    u: Array,
    T: int,
    *,
    state: Array | None = None,
    lengths: Array | None = None,
    step_scale: Array | float | None = None,
    return_state: bool = False,
) -> Any:
    """Layer.apply in its scan form, in blocks of T samples."""
    narrow, u = u, astype(u, params["log_step"])
    signal = layer.signal(u, lengths, None, step_scale)
    coefficients = layer.discretized(params, signal.step_scale)
    state = jnp.zeros(layer.state_shape(u.shape[:-2]), u.dtype) if state is None else state
    starts = from_pair(jnp.moveaxis(state, len(u.shape) - 2, 0)) if layer.bidirectional else from_pair(state)[None]
    names = ("C", "C_reverse") if layer.bidirectional else ("C",)
    y, ends = params["D"] * signal.u if layer.skip else 0.0, []
    for name, x0, reverse in zip(names, starts, (False, True), strict=False):
        out, end = _run(layer, dict(params), coefficients, layer.complex_leaf(params, name), signal.u, x0, T, reverse)
        y = y + out
        ends.append(as_pair(end))
    y = sequences.mask(astype(y, narrow), signal.lengths)
    if not return_state:
        return y
    return y, jnp.stack(ends, axis=len(u.shape) - 2) if layer.bidirectional else ends[0]


def _run(
    layer: DiagonalLayer,
    params: dict[str, Array],
    coefficients: tuple[Array, Array],
    C: Array,
    u: Array,
    x0: Array,
    T: int,
    reverse: bool,
) -> tuple[Array, Array]:
    """One direction, without D: the output and the state after the last block."""
    L = u.shape[-2]
    n = -(-L // T)
    u = jnp.moveaxis(u, -2, 0)
    u = jnp.pad(u, ((0, n * T - L), *((0, 0),) * (u.ndim - 1)))

    @jax.checkpoint
    def block(x: Array, params: dict[str, Array], coefficients: tuple, C: Array, u: Array) -> tuple[Array, Array]:
        Lambda_bar, gain = coefficients
        x = loop(Lambda_bar, gain * layer.drive(params, u), x, reverse)
        return x[0 if reverse else -1], layer.readout(C, x)

    def body(x: Array, u: Array) -> tuple[Array, Array]:
        return block(x, params, coefficients, C, u)

    end, y = lax.scan(body, x0, u.reshape(n, T, *u.shape[1:]), reverse=reverse)
    return jnp.moveaxis(y.reshape(n * T, *y.shape[2:])[:L], 0, -2), end


def _product(sizes: tuple[int, ...]) -> int:
    return functools.reduce(int.__mul__, sizes, 1)
