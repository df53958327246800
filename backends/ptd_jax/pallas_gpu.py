"""The recurrence of chunks and of samples as one GPU kernel, by Pallas through Triton.

One program runs one row, direction and tile of modes over one segment of time: the loads of UNROLL steps are in flight
at once and states stay in registers, so memory sees each drive once and each state once. Where rows and modes alone
would leave the device idle, time is cut into segments: a first pass finds what each segment adds to the state, a tree
over the segments gives the states they start from, a second pass writes. Under jit on several devices each runs the
rows that lie there.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ptd.arrays import Array, as_planes, from_planes

from .recurrences import tree
from .rows import by_rows

UNROLL = 8
#: Programs wanted in flight, of one or two warps: some sixteen for each of 132 processors.
PROGRAMS = 2048
SHORTEST_SEGMENT = 64
#: Modes per program: at least what makes a memory transaction of 32 bytes, at most two warps.
NARROWEST, WIDEST = 8, 64


def entering(Lambda_bar: Array, drive: Array, start: Array, interpret: bool = False) -> tuple[Array, Array]:
    """The states that enter each step, and those after the last.

    Args:
        Lambda_bar: complex (G, 1, M), or (G, n, M) with a coefficient per step; the R rows of a group share it.
        drive: real (G, R, n, D, 2, M); direction 1 runs from the last step to the first.
        start: real (G, R, D, 2, M), what enters first.
        interpret: run the kernel's meaning on any device.

    Returns:
        The states, like drive, and the final one, like start.
    """
    M = drive.shape[-1]
    lanes = -M % NARROWEST
    a, drive, start = (
        jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, lanes),)) for x in (as_planes(Lambda_bar), drive, start)
    )
    states, final = _entering(a, drive, start, False, interpret)
    return states[..., :M], final[..., :M]


def scan(Lambda_bar: Array, drive: Array, state: Array, interpret: bool = False) -> Array:
    """All states, complex (..., L, M), as ptd.recurrence.scan; a reset is a zero in a per-step Lambda_bar."""
    *batch, L, M = drive.shape
    R = math.prod(batch)
    a, groups = Lambda_bar[None, None], (1, R)
    if Lambda_bar.ndim > 1:
        a, groups = jnp.broadcast_to(Lambda_bar, drive.shape).reshape(R, L, M), (R, 1)
    planes, start = as_planes(drive).reshape(*groups, L, 1, 2, M), as_planes(state).reshape(*groups, 1, 2, M)
    states, final = entering(a, planes, start, interpret)
    states = jnp.concatenate([states[:, :, 1:], final[:, :, None]], axis=2)
    return from_planes(states[..., 0, :, :]).reshape(drive.shape)


def carries(Lambda_bar: Array, drive: Array, start: Array, interpret: bool = False) -> tuple[Array, Array]:
    """As ptd.chunks.carries: Lambda_bar (M,) or (H, M), drive ([H,] ..., n, D, 2, M), start (..., D, 2, M)."""
    *rows, n, D, _, M = drive.shape
    a = Lambda_bar.reshape(-1, 1, M)
    # Axes that may be split over devices stay apart: features, and the first of the batch.
    groups = (len(a), math.prod(rows[Lambda_bar.ndim - 1 :]))
    states, final = entering(a, drive.reshape(*groups, n, D, 2, M), start.reshape(*groups, D, 2, M), interpret)
    return states.reshape(drive.shape), final.reshape(start.shape)


def both(Lambda_bar: Array, drive: Array, directions: int, interpret: bool = False) -> Array:
    """The states after each step from zero, for one or both directions of one drive.

    Args:
        Lambda_bar: complex (M,).
        drive: real (..., n, 2, M).
        directions: 1, left to right, or 2.
        interpret: run the kernel's meaning on any device.

    Returns:
        Real (..., n, D, 2, M), in the dtype of drive.
    """
    *rows, n, _, M = drive.shape
    drive, lanes = drive.reshape(1, math.prod(rows), n, 1, 2, M), -M % NARROWEST
    a, drive = (
        jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, lanes),)) for x in (as_planes(Lambda_bar)[None, None], drive)
    )
    states = _both(a, drive, directions, interpret)[..., :M]
    return states.reshape(*rows, n, directions, 2, M)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _both(a: Array, drive: Array, D: int, interpret: bool) -> Array:
    return _run(a, drive, None, D, False, interpret, inclusive=True)[0]


def _both_forward(a: Array, drive: Array, D: int, interpret: bool) -> tuple[Array, tuple]:
    states = _both(a, drive, D, interpret)
    return states, (a, states)


def _both_backward(D: int, interpret: bool, kept: tuple, g: Array) -> tuple[Array, Array]:
    a, states = kept
    adjoint, _ = _run(_conj(a), g, None, D, True, interpret, inclusive=True)
    product = jnp.zeros((), a.dtype)
    for d in range(D):
        x, y = (from_planes(v[..., d, :, :].astype(a.dtype)) for v in (states, adjoint))
        x, y = (x[:, :, 1:], y[:, :, :-1]) if d else (x[:, :, :-1], y[:, :, 1:])
        product = product + jnp.sum(jnp.conj(x) * y, axis=(0, 1, 2))
    return as_planes(product)[None, None], jnp.sum(adjoint, 3, keepdims=True)


_both.defvjp(_both_forward, _both_backward)


def _conj(a: Array) -> Array:
    return a * jnp.asarray([[1.0], [-1.0]], a.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _entering(a: Array, drive: Array, start: Array, backwards: bool, interpret: bool) -> tuple[Array, Array]:
    return _run(a, drive, start, drive.shape[3], backwards, interpret)


def _run(
    a: Array, drive: Array, start: Array | None, D: int, backwards: bool, interpret: bool, inclusive: bool = False
) -> tuple[Array, Array]:
    """States of D directions and the final ones; drive (G, R, n, D or 1, 2, M)."""
    start = jnp.zeros((*drive.shape[:2], D, 2, drive.shape[-1]), a.dtype) if start is None else start
    run = functools.partial(_segments, backwards=backwards, interpret=interpret, inclusive=inclusive)
    return by_rows(run, "gscm, grndcm, grecm -> grnecm, grecm", rows="gr")(a, drive, start)


def _segments(
    a: Array, drive: Array, start: Array, *, backwards: bool, interpret: bool, inclusive: bool
) -> tuple[Array, Array]:
    """_run on one device, in segments of time."""
    groups, (n, _, _, M), D = drive.shape[:2], drive.shape[2:], start.shape[2]
    R = math.prod(groups)
    drive, start = drive.reshape(R, *drive.shape[2:]), start.reshape(R, D, 2, M)
    tile = max(t for t in (NARROWEST, 16, 32, WIDEST) if M % t == 0)
    wanted = 1 if a.shape[1] > 1 else min(PROGRAMS // max(1, R * D * M // tile), n // SHORTEST_SEGMENT)
    steps = -(-n // max(1, wanted))
    run = functools.partial(
        _launch, a, drive, tile=tile, steps=steps, backwards=backwards, inclusive=inclusive, interpret=interpret
    )
    starts = start[:, None]
    segments = -(-n // steps)
    if segments > 1:
        added = run(jnp.zeros((R, segments, D, 2, M), a.dtype), ends_only=True)[-1]
        decay = jnp.repeat(from_planes(a[:, 0]) ** steps, R // len(a), axis=0)[:, None]
        after = jnp.moveaxis(tree(decay, jnp.moveaxis(added, 1, 0), start), 0, 1)
        starts = jnp.concatenate([starts, after[:, :-1]], axis=1)
    states, ends = run(starts)
    return states.reshape(*groups, *states.shape[1:]), ends[:, -1].reshape(*groups, D, 2, M)


def _forward(a: Array, drive: Array, start: Array, backwards: bool, interpret: bool) -> tuple[Any, Any]:
    states, final = _entering(a, drive, start, backwards, interpret)
    return (states, final), (a, states)


def _backward(backwards: bool, interpret: bool, kept: tuple, cotangents: tuple) -> tuple[Array, Array, Array]:
    """The cotangents of the states obey the recurrence from the other end, with the conjugate coefficient."""
    a, states = kept
    adjoint, g_start = _entering(_conj(a), *cotangents, not backwards, interpret)
    x, y = (from_planes(v.astype(a.dtype)) for v in (states, adjoint))
    over = (1, 3) if a.shape[1] > 1 else (1, 2, 3)
    return as_planes(jnp.sum(jnp.conj(x) * y, axis=over).reshape(*a.shape[:2], a.shape[-1])), adjoint, g_start


_entering.defvjp(_forward, _backward)


def _launch(
    a: Array,
    drive: Array,
    starts: Array,
    *,
    tile: int,
    steps: int,
    backwards: bool,
    inclusive: bool,
    interpret: bool,
    ends_only: bool = False,
) -> list[Array]:
    """[states,] ends of the segments that begin in starts (R, segments, D, 2, M)."""
    R, n, _, _, M = drive.shape
    D = starts.shape[2]
    states = jax.ShapeDtypeStruct((R, n, D, 2, M), drive.dtype)
    if R == 0:
        return [jnp.zeros(states.shape, states.dtype), starts]
    shapes = ([] if ends_only else [states]) + [jax.ShapeDtypeStruct(starts.shape, starts.dtype)]
    kernel = functools.partial(
        _kernel, rows=R // len(a), D=D, n=n, tile=tile, steps=steps, backwards=backwards, inclusive=inclusive
    )
    options = {} if interpret else {"compiler_params": _compiler(tile)}
    grid = (R * D, starts.shape[1], M // tile)
    return pl.pallas_call(kernel, shapes, grid=grid, interpret=interpret, name="ptd_entering", **options)(
        a, drive, starts
    )


def _compiler(tile: int) -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=max(1, tile // 32))


def _kernel(
    a: Any,
    drive: Any,
    start: Any,
    *out: Any,
    rows: int,
    D: int,
    n: int,
    tile: int,
    steps: int,
    backwards: bool,
    inclusive: bool,
) -> None:
    program, segment, lanes = pl.program_id(0), pl.program_id(1), pl.ds(pl.program_id(2) * tile, tile)
    row, direction = program // D, program % D
    count = jnp.minimum(steps, n - segment * steps)
    per_step, own = a.shape[1] > 1, direction if drive.shape[2] > 1 else 0

    def planes(ref: Any, *at: Any) -> tuple[Array, Array]:
        return ref[*at, 0, lanes].astype(a.dtype), ref[*at, 1, lanes].astype(a.dtype)

    def store(k: Array, x: tuple[Array, Array]) -> None:
        if len(out) > 1:
            for part in range(2):
                out[0][row, k, direction, part, lanes] = x[part].astype(out[0].dtype)

    fixed = planes(a, row // rows, 0)

    def step(at: tuple, x: tuple[Array, Array]) -> tuple[Array, Array]:
        k, d, c = at
        after = c[0] * x[0] - c[1] * x[1] + d[0], c[0] * x[1] + c[1] * x[0] + d[1]
        store(k, after if inclusive else x)
        return after

    def several(first: Array, number: int, x: tuple[Array, Array]) -> tuple[Array, Array]:
        """That many steps, loaded before the first is run."""
        loaded = []
        for j in range(number):
            k = segment * steps + first + j
            k = jnp.where((direction == 1) != backwards, n - 1 - k, k)
            loaded.append((k, planes(drive, row, k, own), planes(a, row, k) if per_step else fixed))
        for at in loaded:
            x = step(at, x)
        return x

    x = planes(start, row, segment, direction)
    x = lax.fori_loop(0, count // UNROLL, lambda i, x: several(i * UNROLL, UNROLL, x), x)
    x = lax.fori_loop(count // UNROLL * UNROLL, count, lambda i, x: several(i, 1, x), x)
    out[-1][row, segment, direction, 0, lanes], out[-1][row, segment, direction, 1, lanes] = x
