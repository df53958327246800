"""States from rest, tile by tile, as Triton kernels.

Time is cut into tiles of a few rows. One kernel finds what each tile adds to the state that enters it, from both
ends; scan.py runs through these, which are few; a second kernel computes the states of all tiles at once from those
that enter. A program reads a tile for both directions, and adds up the gradients that both have. So the
loads of many tiles are in flight, where a walk through time waits for each of its own (benchmarks/notes.md).

A thread owns lanes, pairs of sequence and mode, and holds all rows of a tile as so many registers: there is no exchange
between threads, and a tile can be walked through from either end.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .columns import totals
from .scan import walk

#: Rows of a tile, and warps of a program.
ROWS, WARPS = 16, 1
#: Lanes of a tile, by the bytes of a number: a thread loads four bytes at once.
LANES = {8: 32, 4: 32, 2: 64}

#: Of programs that sum up a gradient, each walks through as many tiles as leaves about this many of them.
PROGRAMS = 4096


@triton.jit
def _place(lanes, inner, spans, M: tl.constexpr, LANES: tl.constexpr):
    """Which lanes exist, their sequences and modes, and the span of tiles: neighbours in memory run side by side."""
    program = tl.program_id(0)
    lane = (program // (inner * spans) * inner + program % inner) * LANES + tl.arange(0, LANES)
    return lane < lanes, (lane // M).to(tl.int64), lane % M, program // inner % spans


@triton.jit
def _pair(x, at, plane: tl.constexpr, known, acc: tl.constexpr):
    """Real and imaginary parts at one row."""
    return tl.load(x + at, mask=known, other=0.0).to(acc), tl.load(x + at + plane, mask=known, other=0.0).to(acc)


@triton.jit
def _store_pair(x, at, plane: tl.constexpr, re, im, known):
    tl.store(x + at, re.to(x.dtype.element_ty), mask=known)
    tl.store(x + at + plane, im.to(x.dtype.element_ty), mask=known)


@triton.jit
def _tile(
    x, at, t: tl.constexpr, plane: tl.constexpr, k, n, live, acc: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """The rows of a tile, t numbers apart, from sample k on: zero where there is no sample, before it or after."""
    re, im = (), ()
    for i in tl.static_range(ROWS):
        row_re, row_im = _pair(x, at + i * t, plane, live & (k + i < n) & (k + i >= 0), acc)
        re += (row_re,)
        im += (row_im,)
    return re, im


@triton.jit
def _next(a_re, a_im, c_re, c_im, b_re, b_im):
    """a c + b."""
    return a_re * c_re - a_im * c_im + b_re, a_re * c_im + a_im * c_re + b_im


@triton.jit
def _store_end(
    ends, at, plane: tl.constexpr, a_re, a_im, re, im, live, MIRRORED: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """The state that a tile's drive alone leaves."""
    c_re, c_im = tl.zeros_like(a_re), tl.zeros_like(a_im)
    for row in tl.static_range(ROWS - 1 if MIRRORED else 0, -1 if MIRRORED else ROWS, -1 if MIRRORED else 1):
        c_re, c_im = _next(a_re, a_im, c_re, c_im, re[row], im[row])
    _store_pair(ends, at, plane, c_re, c_im, live)


@triton.jit
def _ends(
    a, drive, ends, power, lanes, n, inner, tiles, d_t: tl.constexpr, x_t: tl.constexpr,
    D: tl.constexpr, SHARED: tl.constexpr, ADJOINT: tl.constexpr, DOUBLINGS: tl.constexpr,
    WIDE: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What each tile adds to the state, in all directions, and the coefficient of a whole tile.

    The adjoint runs against the directions, so its tiles are stored in the opposite order.
    """
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    live, r, m, t = _place(lanes, inner, tiles, M, LANES)
    a_re, a_im = _pair(a, m, M, live, acc)
    a_im = -a_im if ADJOINT else a_im
    p_re, p_im = a_re, a_im
    for _ in tl.static_range(DOUBLINGS):
        p_re, p_im = p_re * p_re - p_im * p_im, 2 * p_re * p_im
    _store_pair(power, m, M, p_re, p_im, live & (r + t == 0))
    k = t * ROWS + tl.zeros((LANES,), tl.int32)
    d_at = (r * n + k) * d_t + m
    e_at = (r * tiles + (tiles - 1 - t if ADJOINT else t)) * x_t + m
    re, im = _tile(drive, d_at, d_t, M, k, n, live, acc, ROWS)
    _store_end(ends, e_at, M, a_re, a_im, re, im, live, ADJOINT, ROWS)
    if D == 2:
        if not SHARED:
            re, im = _tile(drive, d_at + 2 * M, d_t, M, k, n, live, acc, ROWS)
        _store_end(ends, e_at + 2 * M, M, a_re, a_im, re, im, live, not ADJOINT, ROWS)


@triton.jit
def _walk(
    entering, e_at, x, at, a_re, a_im, re, im, k, n, live, x_t: tl.constexpr, acc: tl.constexpr, M: tl.constexpr,
    EXCLUSIVE: tl.constexpr, MIRRORED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The states of one direction of a tile: after each sample, or if EXCLUSIVE before it."""
    c_re, c_im = _pair(entering, e_at, M, live, acc)
    for row in tl.static_range(ROWS - 1 if MIRRORED else 0, -1 if MIRRORED else ROWS, -1 if MIRRORED else 1):
        known = live & (k + row < n)
        if EXCLUSIVE:
            _store_pair(x, at + row * x_t, M, c_re, c_im, known)
        c_re, c_im = _next(a_re, a_im, c_re, c_im, re[row], im[row])
        if not EXCLUSIVE:
            _store_pair(x, at + row * x_t, M, c_re, c_im, known)


@triton.jit
def _states(
    a, drive, entering, x, lanes, n, inner, tiles, d_t: tl.constexpr, x_t: tl.constexpr,
    D: tl.constexpr, SHARED: tl.constexpr, EXCLUSIVE: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The states of a tile."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    live, r, m, t = _place(lanes, inner, tiles, M, LANES)
    a_re, a_im = _pair(a, m, M, live, acc)
    k = t * ROWS + tl.zeros((LANES,), tl.int32)
    d_at, x_at, e_at = (r * n + k) * d_t + m, (r * n + k) * x_t + m, (r * tiles + t) * x_t + m
    re, im = _tile(drive, d_at, d_t, M, k, n, live, acc, ROWS)
    _walk(entering, e_at, x, x_at, a_re, a_im, re, im, k, n, live, x_t, acc, M, EXCLUSIVE, False, ROWS)
    if D == 2:
        if not SHARED:
            re, im = _tile(drive, d_at + 2 * M, d_t, M, k, n, live, acc, ROWS)
        e_at, x_at = e_at + 2 * M, x_at + 2 * M
        _walk(entering, e_at, x, x_at, a_re, a_im, re, im, k, n, live, x_t, acc, M, EXCLUSIVE, True, ROWS)


@triton.jit
def _walk_back(
    entering, e_at, grad, before, at, a_re, a_im, g_re, g_im, k, n, live,
    x_t: tl.constexpr, acc: tl.constexpr, M: tl.constexpr,
    EXCLUSIVE: tl.constexpr, MIRRORED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of the drive of one direction of a tile, on its way, and that of the coefficient added to g.

    The latter is the sum of the former times the states before each sample: those of the run, where they are
    exclusive, else the states after the sample that is next on the way back.
    """
    shift: tl.constexpr = 0 if EXCLUSIVE else (-1 if MIRRORED else 1)
    re, im = _tile(grad, at, x_t, M, k, n, live, acc, ROWS)
    f_re, f_im = _tile(before, at + shift * x_t, x_t, M, k + shift, n, live, acc, ROWS)
    c_re, c_im = _pair(entering, e_at, M, live, acc)
    found_re, found_im = (), ()
    for row in tl.static_range(ROWS - 1 if MIRRORED else 0, -1 if MIRRORED else ROWS, -1 if MIRRORED else 1):
        x_re, x_im = _next(a_re, a_im, c_re, c_im, re[row], im[row])
        if not EXCLUSIVE:
            c_re, c_im = x_re, x_im
        g_re += c_re * f_re[row] + c_im * f_im[row]
        g_im += c_im * f_re[row] - c_re * f_im[row]
        found_re += (c_re,)
        found_im += (c_im,)
        c_re, c_im = x_re, x_im
    return found_re, found_im, g_re, g_im


@triton.jit
def _store_tile(
    x, at, re, im, k, n, live, t: tl.constexpr, M: tl.constexpr, MIRRORED: tl.constexpr, ROWS: tl.constexpr
):
    """A tile of rows that were found in order, or from the last."""
    for i in tl.static_range(ROWS):
        known = live & (k + i < n)
        if MIRRORED:
            _store_pair(x, at + i * t, M, re[ROWS - 1 - i], im[ROWS - 1 - i], known)
        else:
            _store_pair(x, at + i * t, M, re[i], im[i], known)


@triton.jit
def _adjoint(
    a, grad, entering, before, x, grad_a, lanes, n, inner, tiles, spans, d_t: tl.constexpr, x_t: tl.constexpr,
    D: tl.constexpr, SHARED: tl.constexpr, EXCLUSIVE: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The gradient of the drive, of both directions together if SHARED, and of the coefficient, for a span of tiles."""
    acc: tl.constexpr = tl.float64 if WIDE else tl.float32
    live, r, m, s = _place(lanes, inner, spans, M, LANES)
    a_re, a_im = _pair(a, m, M, live, acc)
    a_im = -a_im
    g_re = tl.zeros((LANES,), acc)
    g_im = tl.zeros((LANES,), acc)
    for t in range(s * SPAN, tl.minimum(s * SPAN + SPAN, tiles)):
        k = t * ROWS + tl.zeros((LANES,), tl.int32)
        d_at, x_at, e_at = (r * n + k) * d_t + m, (r * n + k) * x_t + m, (r * tiles + tiles - 1 - t) * x_t + m
        re, im, g_re, g_im = _walk_back(
            entering, e_at, grad, before, x_at, a_re, a_im, g_re, g_im, k, n, live, x_t, acc, M, EXCLUSIVE, True, ROWS
        )  # fmt: skip
        if D == 2:
            if not SHARED:
                _store_tile(x, d_at, re, im, k, n, live, d_t, M, True, ROWS)
            e_at, x_at = e_at + 2 * M, x_at + 2 * M
            other_re, other_im, g_re, g_im = _walk_back(
                entering, e_at, grad, before, x_at, a_re, a_im, g_re, g_im, k, n, live, x_t, acc, M,
                EXCLUSIVE, False, ROWS,
            )  # fmt: skip
            if SHARED:
                for i in tl.static_range(ROWS):
                    sum_re, sum_im = re[ROWS - 1 - i] + other_re[i], im[ROWS - 1 - i] + other_im[i]
                    _store_pair(x, d_at + i * d_t, M, sum_re, sum_im, live & (k + i < n))
            else:
                _store_tile(x, d_at + 2 * M, other_re, other_im, k, n, live, d_t, M, False, ROWS)
        else:
            _store_tile(x, d_at, re, im, k, n, live, d_t, M, True, ROWS)
    at = (r * spans + s) * 2 * M + m
    _store_pair(grad_a, at, M, g_re, g_im, live)


# --- launches ----------------------------------------------------------------------------------------------------


def states(a: Tensor, drive: Tensor, directions: int, *, exclusive: bool) -> Tensor:
    """The states (R, n, D, 2, M), from rest, after each sample or if exclusive before it.

    Args:
        a: (2, M).
        drive: contiguous (R, n, D, 2, M), or (R, n, 1, 2, M) for all directions.
        directions: D, 1 or 2.
        exclusive: the states before each sample, else after it.
    """
    R, n, given, _, M = drive.shape
    x = drive.new_empty((R, n, directions, 2, M))
    if x.numel() == 0:
        return x
    flags = {"D": directions, "SHARED": given < directions}
    entering = _entering(a, drive, ADJOINT=False, **flags)
    blocks, inner, tiling = _lanes(a, drive)
    tiles = entering.shape[1]
    _states[(blocks * tiles,)](
        a, drive, entering, x, R * M, n, inner, tiles, d_t=given * 2 * M, x_t=directions * 2 * M,
        EXCLUSIVE=exclusive, M=M, **flags, **tiling,
    )  # fmt: skip
    return x


def adjoint(a: Tensor, grad: Tensor, before: Tensor, *, shared: bool, exclusive: bool) -> tuple[Tensor, Tensor]:
    """The gradients of states by its drive and by a.

    Args:
        a: (2, M).
        grad: contiguous (R, n, D, 2, M), by the states.
        before: contiguous, the states.
        shared: whether the drive is one for all directions.
        exclusive: as in states.
    """
    R, n, D, _, M = grad.shape
    given = 1 if shared else D
    x = grad.new_empty((R, n, given, 2, M))
    if x.numel() == 0:
        return x, torch.zeros_like(a)
    flags = {"D": D, "SHARED": given < D}
    entering = _entering(a, grad, ADJOINT=True, D=D, SHARED=False)
    blocks, inner, tiling = _lanes(a, grad)
    tiles = entering.shape[1]
    span = max(1, min(8, blocks * tiles // PROGRAMS))
    spans = triton.cdiv(tiles, span)
    grad_a = a.new_empty((R, spans, 2, M))
    _adjoint[(blocks * spans,)](
        a, grad, entering, before, x, grad_a, R * M, n, inner, tiles, spans, d_t=given * 2 * M, x_t=D * 2 * M,
        EXCLUSIVE=exclusive, SPAN=span, M=M, **flags, **tiling,
    )  # fmt: skip
    return x, totals(grad_a.view(1, R * spans, 2 * M)).view(2, M)


def _entering(a: Tensor, drive: Tensor, *, D: int, **flags: bool) -> Tensor:
    """The states (R, tiles, D, 2, M) that enter each tile."""
    R, n, given, _, M = drive.shape
    tiles = triton.cdiv(n, ROWS)
    ends, power = a.new_empty((R, tiles, D, 2, M)), torch.empty_like(a, memory_format=torch.contiguous_format)
    blocks, inner, tiling = _lanes(a, drive)
    _ends[(blocks * tiles,)](
        a, drive, ends, power, R * M, n, inner, tiles, d_t=given * 2 * M, x_t=D * 2 * M, D=D,
        DOUBLINGS=ROWS.bit_length() - 1, M=M, **flags, **tiling,
    )  # fmt: skip
    return walk(power, ends, None, exclusive=True)[0]


def _lanes(a: Tensor, drive: Tensor) -> tuple[int, int, dict[str, Any]]:
    """Into how many programs the lanes go, how many of these run side by side on one tile, and how they are tiled."""
    R, *_, M = drive.shape
    lanes = LANES[drive.element_size()]
    blocks = triton.cdiv(R * M, lanes)
    tiling = {"ROWS": ROWS, "LANES": lanes, "WIDE": a.dtype == torch.float64, "num_warps": WARPS}
    return blocks, blocks if M % lanes else M // lanes, tiling
