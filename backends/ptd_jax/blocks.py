"""The scan form of S5 in blocks of time, for processors with caches.

Drive, states and output of one block stay in the cache. Where the states of all blocks would fill much memory, the
gradient recomputes them from the state that enters each: on a CPU that costs about what moving them would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ptd import sequences
from ptd.arrays import Array, astype
from ptd.layers import S5, Layer

from .recurrences import loop

#: Complex states of one block, in all: two megabytes in single precision, so that two cores share its products.
BLOCK_STATES = 2**18
SHORTEST, LONGEST = 32, 2048
#: States, in all, up to which they are kept for the gradient: 4 megabytes in single precision. More are made again:
#: that takes less time than memory which the system hands out anew at each call.
KEPT = 2**19


def block_length(layer: Layer, shape: tuple[int, ...]) -> int:
    """T, the samples per block, for an input of shape (..., L, H): a divisor of L where there is one near."""
    L, states = shape[-2], _known(shape[:-2]) * math.prod(layer.state_axes)
    T = max(SHORTEST, min(LONGEST, BLOCK_STATES // states))
    if L <= T:
        return L
    return next((t for t in range(T, T // 2, -1) if L % t == 0), T)


def fits(layer: Layer, shape: tuple[int, ...], T: int, call: Mapping[str, Any]) -> bool:
    """Whether the call can run in blocks of T: S5, time-invariant, its states ending where blocks end."""
    steps, state = call.get("step_scale"), call.get("state") is not None
    lengths, padded = call.get("lengths") is not None, shape[-2] % T > 0
    return (
        isinstance(layer, S5)
        and call.get("resets") is None
        and (steps is None or jnp.ndim(steps) == 0)
        and not (call.get("return_state", False) and (lengths or padded))
        # From right to left a state would enter at the end of the padding.
        and not (layer.bidirectional and state and (lengths or padded))
    )


def apply(
    layer: S5,
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
    Lambda_bar, gain = layer.discretized(params, signal.step_scale)
    state = jnp.zeros(layer.state_shape(u.shape[:-2]), u.dtype) if state is None else state
    # Planes, the directions first: (D, ..., 2, P).
    starts = jnp.moveaxis(state if layer.bidirectional else state[..., None, :, :], (-3, -1), (0, -2))
    into = _beside(layer.input_rows(params, gain), 1)
    y, ends = params["D"] * signal.u if layer.skip else 0.0, []
    for name, x0, reverse in zip(("C", "C_reverse"), starts, (False, True), strict=False):
        out = layer.weight * _beside(jnp.conj(layer.complex_leaf(params, name)).T, 0)
        found, end = _run(Lambda_bar, into, out, signal.u, x0, T, reverse)
        y = y + found
        ends.append(end)
    y = sequences.mask(astype(y, narrow), signal.lengths)
    if not return_state:
        return y
    end = jnp.moveaxis(jnp.stack(ends), (0, -2), (-3, -1))
    return y, end if layer.bidirectional else end[..., 0, :, :]


def _beside(x: Array, axis: int) -> Array:
    """The real and imaginary parts of x, one after the other along axis."""
    return jnp.concatenate([x.real, x.imag], axis=axis)


def _run(Lambda_bar: Array, into: Array, out: Array, u: Array, x0: Array, T: int, reverse: bool) -> tuple[Array, Array]:
    """One direction, without D: the output and the state after the last block."""
    L = u.shape[-2]
    n = -(-L // T)
    u = jnp.moveaxis(u, -2, 0)
    u = jnp.pad(u, ((0, n * T - L), *((0, 0),) * (u.ndim - 1)))

    def block(x: Array, u: Array) -> tuple[Array, Array]:
        drive = u @ into
        x = loop(Lambda_bar, drive.reshape(*u.shape[:-1], 2, Lambda_bar.size), x, reverse)
        return x[0 if reverse else -1], x.reshape(drive.shape) @ out

    if _known(u.shape[:-1]) * Lambda_bar.size > KEPT:
        block = jax.checkpoint(block)
    end, y = lax.scan(block, x0, u.reshape(n, T, *u.shape[1:]), reverse=reverse)
    return jnp.moveaxis(y.reshape(n * T, *y.shape[2:])[:L], 0, -2), end


def _known(sizes: tuple[Any, ...]) -> int:
    """The product of sizes, at least 1; one that jax.export leaves open counts as 1."""
    return max(1, math.prod(size for size in sizes if isinstance(size, int)))
