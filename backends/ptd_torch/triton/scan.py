"""The diagonal recurrence as one Triton kernel, and its launches.

One lane owns one mode of one sequence and walks through time in tiles: a tile's rows are one lane's registers, so
the scan within a tile needs no exchange between lanes, and a tile's loads are all in flight at once. Where there are
too few lanes to fill the device, time is cut into segments: a pass that keeps only what each segment does to its
state, a scan over these, and the same kernel again with the states that enter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Rows of a tile, lanes and warps of a program. On an H200 the fastest forward and backward together of 16, 32 and 64
#: rows by 16 and 32 lanes, of those that keep their tile in registers.
ROWS, LANES, WARPS = 32, 32, 1

#: Programs that keep the device busy; fewer, and time is cut into segments.
ENOUGH_PROGRAMS = 1056


@triton.jit
def _compose(a_re, a_im, x_re, x_im, b_re, b_im, y_re, y_im):
    """First x -> a x + x, then x -> b x + y."""
    p_re = b_re * a_re - b_im * a_im
    p_im = b_re * a_im + b_im * a_re
    z_re = b_re * x_re - b_im * x_im + y_re
    z_im = b_re * x_im + b_im * x_re + y_im
    return p_re, p_im, z_re, z_im


@triton.jit
def _walk_one_way(
    a, drive, x0, x, final, product, before, grad_a,
    lanes, M, n, segment, group,
    a_r, a_t: tl.constexpr, a_p, a_m,
    d_r, d_t: tl.constexpr, d_d, d_p, d_m,
    x0_r, x0_d, x0_s, x0_p,
    s_r, s_d, s_s, s_p,
    x_r, x_t: tl.constexpr, x_d, x_p,
    PER_STEP: tl.constexpr, EXCLUSIVE: tl.constexpr, ADJOINT: tl.constexpr, HAS_X0: tl.constexpr,
    STORE: tl.constexpr, SUMMARY: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
    MIRRORED: tl.constexpr,
):  # fmt: skip
    """States of one direction of one segment, for LANES pairs of sequence and mode.

    EXCLUSIVE stores the state before each sample, else after it. ADJOINT runs against the direction with conjugate
    coefficients and sums up the gradient of the coefficients from the states before each sample.
    """
    acc = tl.float64 if WIDE else tl.float32
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    direction, s = tl.program_id(1), tl.program_id(2)
    live = lane < lanes
    r, m = (lane // M).to(tl.int64), lane % M
    start = s * segment
    stop = tl.minimum(start + segment, n)
    sign: tl.constexpr = -1 if MIRRORED else 1
    origin = n - 1 if MIRRORED else 0

    a_lane = (r // group) * a_r + m * a_m
    d_lane = r * d_r + direction * d_d + m * d_m
    x_lane = r * x_r + direction * x_d + m
    s_lane = r * s_r + direction * s_d + s * s_s + m
    if not PER_STEP:
        one_re = tl.load(a + a_lane, mask=live, other=0.0).to(acc)
        one_im = tl.load(a + a_lane + a_p, mask=live, other=0.0).to(acc)
        if ADJOINT:
            one_im = -one_im
        a_re = tl.broadcast_to(one_re[:, None], (LANES, ROWS))
        a_im = tl.broadcast_to(one_im[:, None], (LANES, ROWS))
    if HAS_X0:
        x0_lane = r * x0_r + direction * x0_d + s * x0_s + m
        c_re = tl.load(x0 + x0_lane, mask=live, other=0.0).to(acc)
        c_im = tl.load(x0 + x0_lane + x0_p, mask=live, other=0.0).to(acc)
    else:
        c_re = tl.zeros((LANES,), acc)
        c_im = tl.zeros((LANES,), acc)
    if SUMMARY:
        q_re = tl.full((LANES,), 1.0, acc)
        q_im = tl.zeros((LANES,), acc)
    g_re = tl.zeros((LANES,), acc)
    g_im = tl.zeros((LANES,), acc)
    begin = (origin + sign * start).to(tl.int64)
    x_at = x_lane + begin * x_t
    if EXCLUSIVE and STORE:
        tl.store(x + x_at, c_re.to(x.dtype.element_ty), mask=live)
        tl.store(x + x_at + x_p, c_im.to(x.dtype.element_ty), mask=live)
        if ADJOINT:
            f_re = tl.load(before + x_at, mask=live, other=0.0).to(acc)
            f_im = tl.load(before + x_at + x_p, mask=live, other=0.0).to(acc)
            g_re += c_re * f_re + c_im * f_im
            g_im += c_im * f_re - c_re * f_im

    # Where the rows of a tile lie from its first, and the first itself: 32 bits of address arithmetic a row.
    rows = tl.arange(0, ROWS)
    d_rows, x_rows, a_rows = rows * (sign * d_t), rows * (sign * x_t), rows * (sign * a_t)
    d_at, a_at = d_lane + begin * d_t, a_lane + begin * a_t
    # before holds the forward run's states: before each sample if EXCLUSIVE, else after it, and the one before is
    # wanted, which the adjoint, on its way back, meets next. Exclusive states are stored one sample further.
    e_at = x_at + sign * x_t
    if EXCLUSIVE:
        x_at = e_at
    for k0 in range(start, stop, ROWS):
        k = k0 + rows
        valid = (k < stop)[None, :] & live[:, None]
        here = drive + (d_at[:, None] + d_rows[None, :])
        b_re = tl.load(here, mask=valid, other=0.0).to(acc)
        b_im = tl.load(here + d_p, mask=valid, other=0.0).to(acc)
        stored = valid
        if EXCLUSIVE:
            stored = (k + 1 < stop)[None, :] & live[:, None]
        if ADJOINT and STORE:
            seen = stored
            if not EXCLUSIVE:
                seen = valid & (k + 1 < n)[None, :]
            here = before + (e_at[:, None] + x_rows[None, :])
            e_re = tl.load(here, mask=seen, other=0.0).to(acc)
            e_im = tl.load(here + x_p, mask=seen, other=0.0).to(acc)
        if PER_STEP:
            # The adjoint at k is driven through the coefficient of step k + 1.
            known = valid & (origin + sign * k + ADJOINT < n)[None, :]
            here = a + (a_at[:, None] + ADJOINT * a_t + a_rows[None, :])
            a_re = tl.load(here, mask=known, other=0.0).to(acc)
            a_im = tl.load(here + a_p, mask=known, other=0.0).to(acc)
            if ADJOINT:
                a_im = -a_im
        p_re, p_im, y_re, y_im = tl.associative_scan((a_re, a_im, b_re, b_im), 1, _compose)
        y_re, y_im = (
            y_re + p_re * c_re[:, None] - p_im * c_im[:, None],
            y_im + p_re * c_im[:, None] + p_im * c_re[:, None],
        )
        end = rows[None, :] == tl.minimum(stop - k0, ROWS) - 1
        c_re = tl.sum(tl.where(end, y_re, 0.0), 1)
        c_im = tl.sum(tl.where(end, y_im, 0.0), 1)
        if SUMMARY:
            w_re = tl.sum(tl.where(end, p_re, 0.0), 1)
            w_im = tl.sum(tl.where(end, p_im, 0.0), 1)
            q_re, q_im = q_re * w_re - q_im * w_im, q_re * w_im + q_im * w_re
        if STORE:
            here = x + (x_at[:, None] + x_rows[None, :])
            tl.store(here, y_re.to(x.dtype.element_ty), mask=stored)
            tl.store(here + x_p, y_im.to(x.dtype.element_ty), mask=stored)
        if ADJOINT and STORE:
            h_re = y_re * e_re + y_im * e_im
            h_im = y_im * e_re - y_re * e_im
            if PER_STEP:
                here = grad_a + (a_at[:, None] + a_rows[None, :])
                tl.store(here, h_re, mask=valid)
                tl.store(here + a_p, h_im, mask=valid)
            else:
                g_re += tl.sum(h_re, 1)
                g_im += tl.sum(h_im, 1)
        d_at += sign * ROWS * d_t
        x_at += sign * ROWS * x_t
        e_at += sign * ROWS * x_t
        a_at += sign * ROWS * a_t
    if final is not None:
        tl.store(final + s_lane, c_re, mask=live)
        tl.store(final + s_lane + s_p, c_im, mask=live)
    if SUMMARY:
        tl.store(product + s_lane, q_re, mask=live)
        tl.store(product + s_lane + s_p, q_im, mask=live)
    if ADJOINT and STORE and not PER_STEP:
        tl.store(grad_a + s_lane, g_re, mask=live)
        tl.store(grad_a + s_lane + s_p, g_im, mask=live)


# Strides over time and the direction are constants of the program, so that a row's address is an immediate: kept in
# registers they cost as many as the data. M is not specialised and lanes are the first axis of a tile, so a thread
# gets all rows of one lane: a compiler that knows that neighbouring modes lie side by side (Triton 3.6) gives a
# thread four of them and spreads the rows over threads, and the scan in a tile becomes an exchange between threads.
@triton.jit(do_not_specialize=["M"])
def _walk(
    a, drive, x0, x, final, product, before, grad_a,
    lanes, M, n, segment, group,
    a_r, a_t: tl.constexpr, a_p, a_m,
    d_r, d_t: tl.constexpr, d_d, d_p, d_m,
    x0_r, x0_d, x0_s, x0_p,
    s_r, s_d, s_s, s_p,
    x_r, x_t: tl.constexpr, x_d, x_p,
    PER_STEP: tl.constexpr, EXCLUSIVE: tl.constexpr, ADJOINT: tl.constexpr, HAS_X0: tl.constexpr,
    STORE: tl.constexpr, SUMMARY: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """_walk_one_way in the direction of this program."""
    if tl.program_id(1) != ADJOINT:
        _walk_one_way(
            a, drive, x0, x, final, product, before, grad_a, lanes, M, n, segment, group,
            a_r, a_t, a_p, a_m, d_r, d_t, d_d, d_p, d_m, x0_r, x0_d, x0_s, x0_p, s_r, s_d, s_s, s_p, x_r, x_t, x_d, x_p,
            PER_STEP, EXCLUSIVE, ADJOINT, HAS_X0, STORE, SUMMARY, ROWS, LANES, WIDE,
            MIRRORED=True,
        )  # fmt: skip
    else:
        _walk_one_way(
            a, drive, x0, x, final, product, before, grad_a, lanes, M, n, segment, group,
            a_r, a_t, a_p, a_m, d_r, d_t, d_d, d_p, d_m, x0_r, x0_d, x0_s, x0_p, s_r, s_d, s_s, s_p, x_r, x_t, x_d, x_p,
            PER_STEP, EXCLUSIVE, ADJOINT, HAS_X0, STORE, SUMMARY, ROWS, LANES, WIDE,
            MIRRORED=False,
        )  # fmt: skip


def walk(
    a: Tensor,
    drive: Tensor,
    x0: Tensor | None,
    *,
    exclusive: bool,
    before: Tensor | None = None,
    segments: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """States, final states, and with before (the forward run's states) the adjoint and the gradient of a.

    Args:
        a: (2, M), (G, 2, M) for G equal groups of rows, or (R, n, 2, M) per step.
        drive: (R, n, D, 2, M), any strides.
        x0: (R, D, 2, M) or None.
        exclusive: states before each sample, else after it.
        before: contiguous (R, n, D, 2, M), the states of the forward run; runs the adjoint.
        segments: into how many pieces time is cut; by default as many as fill the device.

    Returns:
        x (R, n, D, 2, M) in the dtype of drive, final (R, D, 2, M) in that of a, and the gradient of a per row,
        (R, D, 2, M), or (R, n, 2, M) per step; None without before.
    """
    R, n, D, _, M = drive.shape
    # The kernel takes neighbouring modes of x0 to lie side by side, and writes a gradient per step as a is laid out:
    # an expanded tensor, which a sum's gradient or a broadcast coefficient can be, is neither.
    x0 = None if x0 is None else x0.contiguous()
    a = a.contiguous() if a.ndim == 4 else a
    x = torch.empty((R, n, D, 2, M), dtype=drive.dtype, device=drive.device)
    final = torch.empty((R, D, 2, M), dtype=a.dtype, device=a.device)
    if x.numel() == 0:
        empty = None if before is None else torch.zeros_like(a if a.ndim == 4 else final)
        return x, final.zero_() if x0 is None else final.copy_(x0), empty
    if segments is None:
        programs = triton.cdiv(R * M, LANES) * D
        segments = max(1, min(ENOUGH_PROGRAMS // programs, n // (4 * ROWS)))
    length = -(-n // segments)
    S = -(-n // length)
    flags = {"PER_STEP": a.ndim == 4, "ADJOINT": int(before is not None)}
    if S == 1:
        grad = None if before is None else _grad_like(a, R, 1, D, M)
        start = None if x0 is None else x0[:, :, None]
        _launch(a, drive, start, x, final[:, :, None], None, before, grad, length, EXCLUSIVE=exclusive, **flags)
        return x, final, _grad(a, grad)
    ends = torch.empty((R, D, S, 2, M), dtype=a.dtype, device=a.device)
    products = torch.empty_like(ends)
    _launch(a, drive, None, None, ends, products, None, None, length, EXCLUSIVE=exclusive, SUMMARY=True, **flags)
    merged = (v.view(R * D, S, 2, M) for v in (products, ends))
    start = None if x0 is None else x0.reshape(R * D, 1, 2, M)
    coefficients, between = merged
    entering, last, _ = walk(coefficients, between[:, :, None], start, exclusive=True, segments=1)
    grad = None if before is None else _grad_like(a, R, S, D, M)
    entering = entering.view(R, D, S, 2, M)
    _launch(a, drive, entering, x, None, None, before, grad, length, EXCLUSIVE=exclusive, **flags)
    return x, last.view(R, D, 2, M), _grad(a, grad)


def _grad_like(a: Tensor, R: int, S: int, D: int, M: int) -> Tensor:
    """What the kernel writes of the gradient of a: per step, or summed over each segment."""
    return torch.empty_like(a) if a.ndim == 4 else a.new_empty((R, D, S, 2, M))


def _grad(a: Tensor, grad: Tensor | None) -> Tensor | None:
    return grad if grad is None or a.ndim == 4 else grad.sum(2)


def _launch(
    a: Tensor,
    drive: Tensor,
    x0: Tensor | None,
    x: Tensor | None,
    final: Tensor | None,
    product: Tensor | None,
    before: Tensor | None,
    grad_a: Tensor | None,
    length: int,
    **flags: bool | int,
) -> None:
    R, n, D, _, M = drive.shape
    groups = 1 if a.ndim == 2 else a.shape[0]
    a_strides = {2: (0, 0), 3: (a.stride(0), 0), 4: (a.stride(0), a.stride(1))}[a.ndim]
    summary = next((v for v in (final, product, grad_a if a.ndim != 4 else None) if v is not None), None)
    states = (n * D * 2 * M, D * 2 * M, 2 * M, M)
    grid = (triton.cdiv(R * M, LANES), D, -(-n // length))
    _walk[grid](
        a, drive, x0, x, final, product, before, grad_a,
        R * M, M, n, length, R // groups,
        *a_strides, a.stride(-2), a.stride(-1),
        *drive.stride(),
        *((0,) * 4 if x0 is None else x0.stride()[:4]),
        *((0,) * 4 if summary is None else summary.stride()[:4]),
        *states,
        HAS_X0=x0 is not None, STORE=x is not None, SUMMARY=flags.pop("SUMMARY", False),
        ROWS=ROWS, LANES=LANES, WIDE=a.dtype == torch.float64, num_warps=WARPS, **flags,
    )  # fmt: skip
