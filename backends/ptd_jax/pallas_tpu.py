"""The recurrence on planes as a TPU kernel, by Pallas. Never run on a TPU: tested in TPU interpret mode.

The TPU runs the steps of a grid one after the other, so time is the last grid axis and the state of a tile of rows and
modes waits in scratch memory for the next block of time. Blocks of (TIME, 2, ROWS, MODES) are aligned to the vector
registers, 8 sublanes by 128 lanes of 32 bits: 256 * 2 * 8 * 128 * 4 bytes are 2 MiB each of drive and states, 8 MiB of
the 16 of VMEM with the double buffers that overlap copying and computing.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ptd.arrays import Array, as_planes, from_planes

TIME, ROWS, MODES = 256, 8, 128


def scan(Lambda_bar: Array, drive: Array, state: Array, interpret: Any = False) -> Array:
    """All states of x_k = Lambda_bar x_{k-1} + drive_k, float32, arguments as for recurrences.loop.

    Args:
        Lambda_bar: complex (M,), or (H, 1, ..., M) per feature.
        drive: real (L, ..., 2, M), or (L, H, ..., 2, M).
        state: real (..., 2, M), before the first step.
        interpret: pltpu.InterpretParams() to run the kernel's meaning on any device.
    """
    M = drive.shape[-1]
    a = as_planes(Lambda_bar.reshape(-1, M))
    rows = (len(a), math.prod(state.shape[:-2]) // len(a), 2, M)
    states = _scan(a, drive.reshape(-1, *rows), state.reshape(rows), False, interpret)
    return states.reshape(drive.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _scan(a: Array, drive: Array, state: Array, backwards: bool, interpret: Any) -> Array:
    """States (L, G, R, 2, M) of G groups with a coefficient each, (G, 2, M); backwards: the last step runs first."""
    L, G, R, _, M = drive.shape
    time = min(TIME, -(-L // 8) * 8)
    # Steps are appended after the one that runs last.
    steps, rows, modes = ((-L % time, 0) if backwards else (0, -L % time)), (0, -R % ROWS), (0, -M % MODES)
    drive = jnp.pad(jnp.moveaxis(drive, -2, 2), (steps, (0, 0), (0, 0), rows, modes))
    a = jnp.pad(a, ((0, 0), (0, 0), modes))
    state = jnp.pad(jnp.moveaxis(state, -2, 1), ((0, 0), (0, 0), rows, modes))
    n = drive.shape[0] // time

    def at(g: int, i: int, j: int, t: int) -> tuple[int, ...]:
        return (n - 1 - t if backwards else t), g, 0, i, j

    block = pl.BlockSpec((time, None, 2, ROWS, MODES), at)
    states = pl.pallas_call(
        functools.partial(_kernel, backwards=backwards),
        jax.ShapeDtypeStruct(drive.shape, drive.dtype),
        grid=(G, drive.shape[3] // ROWS, drive.shape[4] // MODES, n),
        in_specs=[
            pl.BlockSpec((None, 2, MODES), lambda g, i, j, t: (g, 0, j)),
            block,
            pl.BlockSpec((None, 2, ROWS, MODES), lambda g, i, j, t: (g, 0, i, j)),
        ],
        out_specs=block,
        scratch_shapes=[pltpu.VMEM((2, ROWS, MODES), drive.dtype)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="ptd_scan",
    )(a, drive, state)
    return jnp.moveaxis(states[steps[0] : steps[0] + L, :, :, :R, :M], 2, -2)


def _kernel(a: Any, drive: Any, start: Any, states: Any, kept: Any, *, backwards: bool) -> None:
    @pl.when(pl.program_id(3) == 0)
    def _() -> None:
        kept[...] = start[...]

    re, im = a[0, :], a[1, :]
    time = drive.shape[0]

    def step(i: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        k = time - 1 - i if backwards else i
        x = re * x[0] - im * x[1] + drive[k, 0], re * x[1] + im * x[0] + drive[k, 1]
        states[k, 0], states[k, 1] = x
        return x

    kept[0], kept[1] = lax.fori_loop(0, time, step, (kept[0], kept[1]))


def _forward(a: Array, drive: Array, state: Array, backwards: bool, interpret: Any) -> tuple[Array, tuple]:
    states = _scan(a, drive, state, backwards, interpret)
    return states, (a, states, state)


def _backward(backwards: bool, interpret: Any, kept: tuple, g: Array) -> tuple[Array, Array, Array]:
    """The cotangents obey the recurrence from the other end, with the conjugate coefficient."""
    a, states, state = kept
    adjoint = _scan(a * jnp.asarray([[1.0], [-1.0]], a.dtype), g, jnp.zeros_like(state), not backwards, interpret)
    before = jnp.concatenate([states[1:], state[None]] if backwards else [state[None], states[:-1]])
    product = jnp.sum(jnp.conj(from_planes(before)) * from_planes(adjoint), axis=(0, 2))
    first = from_planes(adjoint[-1 if backwards else 0])
    return as_planes(product), adjoint, as_planes(jnp.conj(from_planes(a))[:, None] * first)


_scan.defvjp(_forward, _backward)
