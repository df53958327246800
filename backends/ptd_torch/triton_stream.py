"""The time-invariant recurrence in one pass, where sequences and modes are many. Imported only where Triton is.

A program owns LANES pairs of sequence and mode for the whole of time and walks it in tiles of PARTS x ROWS samples. A
thread owns ROWS successive samples of one lane in registers; the parts of a tile exchange one state each. The next
tiles are loaded while one is computed, so that memory is busy although there are few programs: every drive is read
once and every state written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_scan import _compose

#: Lanes of a program, its parts and rows of a part, tiles in flight and warps, forward and in the adjoint.
FORWARD, ADJOINT = (16, 16, 16, 3, 8), (16, 8, 16, 3, 4)

#: Fewer lanes leave the device idle.
ENOUGH_LANES = 2048


@triton.jit
def _stream_one_way(
    a, drive, x0, x, final, before, grad_a,
    lanes, M, n, group,
    a_r, a_p, a_m,
    d_r, d_t: tl.constexpr, d_d, d_p, d_m,
    x_r, x_t: tl.constexpr, x_d, x_p,
    EXCLUSIVE: tl.constexpr, IS_ADJOINT: tl.constexpr, HAS_X0: tl.constexpr,
    LANES: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, HALVINGS: tl.constexpr, STAGES: tl.constexpr,
    MIRRORED: tl.constexpr,
):  # fmt: skip
    """triton_scan._walk_one_way over all of time; x0, final and grad_a are contiguous (R, D, 2, M)."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    direction = tl.program_id(1)
    live = lane < lanes
    r, m = (lane // M).to(tl.int64), lane % M
    sign: tl.constexpr = -1 if MIRRORED else 1
    first = n - 1 if MIRRORED else 0
    part, row = tl.arange(0, PARTS), tl.arange(0, ROWS)

    a_lane = (r // group) * a_r + m * a_m
    a_re = tl.load(a + a_lane, mask=live, other=0.0)
    a_im = tl.load(a + a_lane + a_p, mask=live, other=0.0)
    if IS_ADJOINT:
        a_im = -a_im
    # a^ROWS, what a part does to the state that enters it.
    q_re, q_im = a_re, a_im
    for _ in tl.static_range(HALVINGS):
        q_re, q_im = q_re * q_re - q_im * q_im, 2 * q_re * q_im
    q_re = tl.broadcast_to(q_re[:, None], (LANES, PARTS))
    q_im = tl.broadcast_to(q_im[:, None], (LANES, PARTS))
    a_re = tl.broadcast_to(a_re[:, None, None], (LANES, PARTS, ROWS))
    a_im = tl.broadcast_to(a_im[:, None, None], (LANES, PARTS, ROWS))

    s_lane = r * x_d * tl.num_programs(1) + direction * x_d + m
    if HAS_X0:
        c_re = tl.load(x0 + s_lane, mask=live, other=0.0)
        c_im = tl.load(x0 + s_lane + x_p, mask=live, other=0.0)
    else:
        c_re = tl.zeros((LANES,), tl.float32)
        c_im = tl.zeros((LANES,), tl.float32)
    g_re = tl.zeros((LANES, PARTS), tl.float32)
    g_im = tl.zeros((LANES, PARTS), tl.float32)
    f_re = tl.zeros((LANES, PARTS), tl.float32)
    f_im = tl.zeros((LANES, PARTS), tl.float32)
    x_at = r * x_r + direction * x_d + m + tl.full((), first, tl.int64) * x_t
    if EXCLUSIVE:
        tl.store(x + x_at, c_re.to(x.dtype.element_ty), mask=live)
        tl.store(x + x_at + x_p, c_im.to(x.dtype.element_ty), mask=live)
        if IS_ADJOINT:
            e_re = tl.load(before + x_at, mask=live, other=0.0).to(tl.float32)
            e_im = tl.load(before + x_at + x_p, mask=live, other=0.0).to(tl.float32)
            g_re += tl.where(part == 0, 1.0, 0.0)[None, :] * (c_re * e_re + c_im * e_im)[:, None]
            g_im += tl.where(part == 0, 1.0, 0.0)[None, :] * (c_im * e_re - c_re * e_im)[:, None]

    # A thread's first sample is an address of its own, the others are constants away from it.
    time = part[None, :] * ROWS
    d_rows, x_rows = (row * (sign * d_t))[None, None, :], (row * (sign * x_t))[None, None, :]
    d_at = (r * d_r + direction * d_d + m * d_m + tl.full((), first, tl.int64) * d_t)[:, None] + time * (sign * d_t)
    x_tile = x_at[:, None] + time * (sign * x_t)
    # The adjoint pairs a state's gradient with the state before the sample. Exclusive states lie one sample further.
    e_at = x_tile - x_t
    if EXCLUSIVE:
        x_tile += sign * x_t
        e_at = x_tile
    rows = row[None, None, :]
    left = tl.where(live[:, None], n - time, 0)
    for _ in tl.range(0, n, PARTS * ROWS, num_stages=STAGES):
        valid = rows < left[:, :, None]
        here = drive + (d_at[:, :, None] + d_rows)
        b_re = tl.load(here, mask=valid, other=0.0).to(tl.float32)
        b_im = tl.load(here + d_p, mask=valid, other=0.0).to(tl.float32)
        stored = valid
        if EXCLUSIVE:
            stored = rows < left[:, :, None] - 1
        if IS_ADJOINT:
            # Without EXCLUSIVE there is one direction, whose last sample here is the first of time: none is before it.
            seen = rows < left[:, :, None] - 1
            here = before + (e_at[:, :, None] + x_rows)
            e_re = tl.load(here, mask=seen, other=0.0).to(tl.float32)
            e_im = tl.load(here + x_p, mask=seen, other=0.0).to(tl.float32)
        p_re, p_im, y_re, y_im = tl.associative_scan((a_re, a_im, b_re, b_im), 2, _compose)
        last = rows == ROWS - 1
        o_re = tl.sum(tl.where(last, y_re, 0.0), 2)
        o_im = tl.sum(tl.where(last, y_im, 0.0), 2)
        w_re, w_im, o_re, o_im = tl.associative_scan((q_re, q_im, o_re, o_im), 1, _compose)
        o_re, o_im = (
            o_re + w_re * c_re[:, None] - w_im * c_im[:, None],
            o_im + w_re * c_im[:, None] + w_im * c_re[:, None],
        )
        previous = tl.broadcast_to(tl.maximum(part - 1, 0)[None, :], (LANES, PARTS))
        z_re = tl.where((part == 0)[None, :], c_re[:, None], tl.gather(o_re, previous, 1))
        z_im = tl.where((part == 0)[None, :], c_im[:, None], tl.gather(o_im, previous, 1))
        c_re = tl.sum(tl.where((part == PARTS - 1)[None, :], o_re, 0.0), 1)
        c_im = tl.sum(tl.where((part == PARTS - 1)[None, :], o_im, 0.0), 1)
        y_re += p_re * z_re[:, :, None] - p_im * z_im[:, :, None]
        y_im += p_re * z_im[:, :, None] + p_im * z_re[:, :, None]
        here = x + (x_tile[:, :, None] + x_rows)
        tl.store(here, y_re.to(x.dtype.element_ty), mask=stored)
        tl.store(here + x_p, y_im.to(x.dtype.element_ty), mask=stored)
        if IS_ADJOINT:
            g_re += tl.sum(y_re * e_re + y_im * e_im, 2)
            g_im += tl.sum(y_im * e_re - y_re * e_im, 2)
        end = rows == left[:, :, None] - 1
        f_re += tl.sum(tl.where(end, y_re, 0.0), 2)
        f_im += tl.sum(tl.where(end, y_im, 0.0), 2)
        left -= PARTS * ROWS
        d_at += sign * PARTS * ROWS * d_t
        x_tile += sign * PARTS * ROWS * x_t
        e_at += sign * PARTS * ROWS * x_t
    tl.store(final + s_lane, tl.sum(f_re, 1), mask=live)
    tl.store(final + s_lane + x_p, tl.sum(f_im, 1), mask=live)
    if IS_ADJOINT:
        tl.store(grad_a + s_lane, tl.sum(g_re, 1), mask=live)
        tl.store(grad_a + s_lane + x_p, tl.sum(g_im, 1), mask=live)


# M is not specialised, so that the compiler keeps the samples of a part in one thread; see triton_scan.
@triton.jit(do_not_specialize=["M"])
def _stream(
    a, drive, x0, x, final, before, grad_a,
    lanes, M, n, group,
    a_r, a_p, a_m,
    d_r, d_t: tl.constexpr, d_d, d_p, d_m,
    x_r, x_t: tl.constexpr, x_d, x_p,
    EXCLUSIVE: tl.constexpr, IS_ADJOINT: tl.constexpr, HAS_X0: tl.constexpr,
    LANES: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, HALVINGS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """_stream_one_way in the direction of this program."""
    if tl.program_id(1) != IS_ADJOINT:
        _stream_one_way(
            a, drive, x0, x, final, before, grad_a, lanes, M, n, group,
            a_r, a_p, a_m, d_r, d_t, d_d, d_p, d_m, x_r, x_t, x_d, x_p,
            EXCLUSIVE, IS_ADJOINT, HAS_X0, LANES, PARTS, ROWS, HALVINGS, STAGES, MIRRORED=True,
        )  # fmt: skip
    else:
        _stream_one_way(
            a, drive, x0, x, final, before, grad_a, lanes, M, n, group,
            a_r, a_p, a_m, d_r, d_t, d_d, d_p, d_m, x_r, x_t, x_d, x_p,
            EXCLUSIVE, IS_ADJOINT, HAS_X0, LANES, PARTS, ROWS, HALVINGS, STAGES, MIRRORED=False,
        )  # fmt: skip


def applies(a: Tensor, drive: Tensor) -> bool:
    """Whether the one pass takes a call: float32 coefficients without a time axis, many lanes, several tiles."""
    R, n, D, _, M = drive.shape
    return a.ndim < 4 and a.dtype == torch.float32 and R * D * M >= ENOUGH_LANES and n >= 512


def walk(
    a: Tensor, drive: Tensor, x0: Tensor | None, *, exclusive: bool, before: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """triton_scan.walk for a that applies, in one pass."""
    R, n, D, _, M = drive.shape
    x = torch.empty((R, n, D, 2, M), dtype=drive.dtype, device=drive.device)
    final = torch.empty((R, D, 2, M), dtype=a.dtype, device=a.device)
    grad = None if before is None else torch.empty_like(final)
    LANES, PARTS, ROWS, STAGES, warps = FORWARD if before is None else ADJOINT
    groups = 1 if a.ndim == 2 else a.shape[0]
    _stream[(triton.cdiv(R * M, LANES), D)](
        a, drive, None if x0 is None else x0.contiguous(), x, final, before, grad,
        R * M, M, n, R // groups,
        0 if a.ndim == 2 else a.stride(0), a.stride(-2), a.stride(-1),
        *drive.stride(), n * D * 2 * M, D * 2 * M, 2 * M, M,
        EXCLUSIVE=exclusive, IS_ADJOINT=int(before is not None), HAS_X0=x0 is not None,
        LANES=LANES, PARTS=PARTS, ROWS=ROWS, HALVINGS=ROWS.bit_length() - 1, STAGES=STAGES, num_warps=warps,
    )  # fmt: skip
    return x, final, grad
