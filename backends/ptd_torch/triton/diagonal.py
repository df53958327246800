"""The matrices of diagonal systems over chunks and their gradient, as Triton kernels.

A program owns a feature and forms every power Lambda_bar^t that it needs from the squares Lambda_bar^(2^k), log2(T)
roundings each, for BLOCK modes at a time. All terms of the gradient are sums over t of a cotangent and a power, and
modes do not mix: there a program owns BLOCK modes of a feature.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .complex import loaded, times

#: Modes that a program takes at a time, at most, and its warps; and those of the gradient's.
BLOCK, WARPS = 16, 4
GRADIENT_BLOCK, GRADIENT_WARPS = 4, 1


@triton.jit
def _power(a_re, a_im, t, BITS: tl.constexpr):
    """a^t for t (T,) below 2^BITS and a (BLOCK,): (T, BLOCK)."""
    p_re = tl.zeros((t.shape[0], a_re.shape[0]), tl.float32) + 1.0
    p_im = tl.zeros((t.shape[0], a_re.shape[0]), tl.float32)
    for k in tl.static_range(BITS):
        q_re, q_im = times(p_re, p_im, a_re[None, :], a_im[None, :])
        taken = ((t >> k) % 2 == 1)[:, None]
        p_re, p_im = tl.where(taken, q_re, p_re), tl.where(taken, q_im, p_im)
        a_re, a_im = times(a_re, a_im, a_re, a_im)
    return p_re, p_im


@triton.jit
def _row(p_re, p_im, t, which):
    """The row of a tile (T, BLOCK) at t = which."""
    here = (t == which)[:, None]
    return tl.sum(tl.where(here, p_re, 0.0), 0), tl.sum(tl.where(here, p_im, 0.0), 0)


@triton.jit
def _forward(
    a, rows, C, skip, decay, into, out, direct, lags, M,
    T: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, DIRECTIONS: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0)
    t = tl.arange(0, T)
    width = DIRECTIONS * 2 * M
    into_h, out_h = into + h * T * width, out + h * T * width
    forwards = tl.zeros((T,), tl.float32)
    backwards = tl.zeros((T,), tl.float32)
    for first in range(0, M, BLOCK):
        m = first + tl.arange(0, BLOCK)
        some = m < M
        within = some[None, :]
        here = h * 2 * M + m
        a_re, a_im = loaded(a, here, M, some)
        b_re, b_im = loaded(rows, here, M, some)
        p_re, p_im = _power(a_re, a_im, t, BITS)
        last_re, last_im = _power(a_re, a_im, T - 1 - t, BITS)
        for d in tl.static_range(DIRECTIONS):
            c_re, c_im = loaded(C, (h * DIRECTIONS + d) * 2 * M + m, M, some)
            w_re, w_im = times(c_re, c_im, b_re, b_im)
            lag = tl.sum(w_re[None, :] * p_re - w_im[None, :] * p_im, 1)
            ca_re, ca_im = times(c_re, c_im, a_re, a_im)
            if d == 0:
                forwards += lag
                z_re, z_im = times(last_re, last_im, b_re[None, :], b_im[None, :])
                x_re, x_im = times(p_re, p_im, ca_re[None, :], ca_im[None, :])
            else:
                backwards += lag
                z_re, z_im = times(p_re, p_im, b_re[None, :], b_im[None, :])
                x_re, x_im = times(last_re, last_im, ca_re[None, :], ca_im[None, :])
            at = t[:, None] * width + d * 2 * M + m[None, :]
            tl.store(into_h + at, z_re, mask=within)
            tl.store(into_h + at + M, z_im, mask=within)
            at = (d * 2 * M + m[None, :]) * T + t[:, None]
            tl.store(out_h + at, x_re, mask=within)
            tl.store(out_h + at + M * T, -x_im, mask=within)
        end_re, end_im = _row(p_re, p_im, t, T - 1)
        z_re, z_im = times(end_re, end_im, a_re, a_im)
        tl.store(decay + here, z_re, mask=some)
        tl.store(decay + here + M, z_im, mask=some)
    now = tl.sum(tl.where(t == 0, forwards + backwards, 0.0), 0)
    if skip is not None:
        now += tl.load(skip + h)
    # What a sample adds at each lag goes through memory: each entry of the block reads that of its own lag.
    lags_h = lags + h * 2 * T
    tl.store(lags_h + t, tl.where(t == 0, now, forwards))
    tl.store(lags_h + T + t, backwards)
    tl.debug_barrier()
    lag = t[None, :] - t[:, None]
    seen = lag >= 0 if DIRECTIONS == 1 else tl.full((T, T), 1, tl.int1)
    block = tl.load(lags_h + tl.where(lag >= 0, lag, T - lag), mask=seen, other=0.0)
    tl.store(direct + h * T * T + t[:, None] * T + t[None, :], block)


@triton.jit
def _lags_gradient(grad_direct, grad_lags, grad_skip, T: tl.constexpr):
    """The gradients by what a sample adds at each lag of each direction, (H, 2, T): sums along diagonals."""
    h, lag, sample = tl.program_id(0), tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    square = grad_direct + h * T * T + sample * T + sample
    forwards = tl.sum(tl.load(square + lag, mask=sample + lag < T, other=0.0), 1)
    backwards = tl.sum(tl.load(square - lag, mask=sample >= lag, other=0.0), 1)
    at = grad_lags + h * 2 * T + tl.arange(0, T)
    tl.store(at, forwards)
    tl.store(at + T, backwards)
    if grad_skip is not None:
        tl.store(grad_skip + h, tl.sum(tl.where(tl.arange(0, T) == 0, forwards, 0.0), 0))


@triton.jit
def _gradient(
    a, rows, C, grad_decay, grad_into, grad_out, lags, grad_a, grad_rows, grad_C, M,
    T: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """With P_t = a^t: into holds b P_t (first direction from the end), out c a P_t, a lag Re(c b P_t), decay a P_(T-1).

    The cotangent of a complex number is that of its real part plus i that of its imaginary part, so that a product's
    are cotangents times conjugates of the other factor.
    """
    h = tl.program_id(0)
    t = tl.arange(0, T)
    width = DIRECTIONS * 2 * M
    into_h, out_h = grad_into + h * T * width, grad_out + h * T * width
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    some = m < M
    within = some[None, :]
    here = h * 2 * M + m
    a_re, a_im = loaded(a, here, M, some)
    b_re, b_im = loaded(rows, here, M, some)
    p_re, p_im = _power(a_re, a_im, t, BITS)
    # The derivative of P_t by a, t P_(t-1): s and k below are sums with powers, r and l the same with slopes.
    slope_re, slope_im = _power(a_re, a_im, tl.where(t > 0, t - 1, 0), BITS)
    slope_re, slope_im = slope_re * t[:, None].to(tl.float32), slope_im * t[:, None].to(tl.float32)
    gb_re = tl.zeros((BLOCK,), tl.float32)
    gb_im = tl.zeros((BLOCK,), tl.float32)
    ga_re = tl.zeros((BLOCK,), tl.float32)
    ga_im = tl.zeros((BLOCK,), tl.float32)
    for d in tl.static_range(DIRECTIONS):
        if d == 0:
            from_end, from_start = T - 1 - t, t
        else:
            from_end, from_start = t, T - 1 - t
        k = tl.load(lags + (h * 2 + d) * T + t)[:, None]
        c_re, c_im = loaded(C, (h * DIRECTIONS + d) * 2 * M + m, M, some)
        # into: cotangents of b P_t
        z_re, z_im = loaded(into_h, from_end[:, None] * width + d * 2 * M + m[None, :], M, within)
        s_re, s_im = _by_conjugate(z_re, z_im, p_re, p_im)
        r_re, r_im = _by_conjugate(z_re, z_im, slope_re, slope_im)
        # a lag: real cotangents of Re(c b P_t)
        k_re, k_im = tl.sum(k * p_re, 0), -tl.sum(k * p_im, 0)
        l_re, l_im = tl.sum(k * slope_re, 0), -tl.sum(k * slope_im, 0)
        u_re, u_im = times(c_re, -c_im, k_re, k_im)
        gb_re, gb_im = gb_re + s_re + u_re, gb_im + s_im + u_im
        gc_re, gc_im = times(b_re, -b_im, k_re, k_im)
        u_re, u_im = times(c_re, -c_im, l_re, l_im)
        u_re, u_im = times(b_re, -b_im, r_re + u_re, r_im + u_im)
        ga_re, ga_im = ga_re + u_re, ga_im + u_im
        # out: cotangents of c P_(t+1) = c a P_t, the imaginary part with the other sign
        z_re, z_im = loaded(out_h, (d * 2 * M + m[None, :]) * T + from_start[:, None], M * T, within)
        z_im = -z_im
        s_re, s_im = _by_conjugate(z_re, z_im, p_re, p_im)
        u_re, u_im = times(a_re, -a_im, s_re, s_im)
        gc_re, gc_im = gc_re + u_re, gc_im + u_im
        # d a^(t+1) = a^t + a t a^(t-1)
        r_re, r_im = _by_conjugate(z_re, z_im, slope_re, slope_im)
        u_re, u_im = times(a_re, -a_im, r_re, r_im)
        u_re, u_im = times(c_re, -c_im, s_re + u_re, s_im + u_im)
        ga_re, ga_im = ga_re + u_re, ga_im + u_im
        at = (h * DIRECTIONS + d) * 2 * M + m
        tl.store(grad_C + at, gc_re, mask=some)
        tl.store(grad_C + at + M, gc_im, mask=some)
    # decay: d a^T = T a^(T-1)
    end_re, end_im = _row(p_re, p_im, t, T - 1)
    z_re, z_im = loaded(grad_decay, here, M, some)
    u_re, u_im = times(z_re, z_im, T * end_re, -T * end_im)
    tl.store(grad_a + here, ga_re + u_re, mask=some)
    tl.store(grad_a + here + M, ga_im + u_im, mask=some)
    tl.store(grad_rows + here, gb_re, mask=some)
    tl.store(grad_rows + here + M, gb_im, mask=some)


@triton.jit
def _by_conjugate(z_re, z_im, p_re, p_im):
    """The sums over t of z conj(p)."""
    return tl.sum(z_re * p_re + z_im * p_im, 0), tl.sum(z_im * p_re - z_re * p_im, 0)


# --- launches ----------------------------------------------------------------------------------------------------


def matrices(
    a: Tensor, rows: Tensor, C: Tensor, skip: Tensor | None, T: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See ptd_torch.diagonal.matrices; arguments are contiguous."""
    H, D, _, M = C.shape
    decay, into, out = a.new_empty((H, 2, M)), a.new_empty((H, T, D * 2 * M)), a.new_empty((H, D * 2 * M, T))
    direct, lags = a.new_empty((H, T, T)), a.new_empty((H, 2, T))
    block = min(BLOCK, triton.next_power_of_2(M))
    _forward[(H,)](
        a, rows, C, skip, decay, into, out, direct, lags, M,
        T=T, BITS=T.bit_length() - 1, BLOCK=block, DIRECTIONS=D, num_warps=WARPS,
    )  # fmt: skip
    return decay, into, out, direct


def gradients(
    a: Tensor, rows: Tensor, C: Tensor, skip: bool, grads: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by a, rows, C and skip, of none with no entries, from those by decay, into, out and direct."""
    H, D, _, M = C.shape
    T = grads[3].shape[-1]
    by_skip, by_lags = a.new_empty(H if skip else 0), a.new_empty((H, 2, T))
    found = a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(C.shape), by_skip
    decay, into, out, direct = grads
    _lags_gradient[(H,)](direct, by_lags, by_skip if skip else None, T=T, num_warps=WARPS)
    block = min(GRADIENT_BLOCK, triton.next_power_of_2(M))
    _gradient[(H, triton.cdiv(M, block))](
        a, rows, C, decay, into, out, by_lags, *found[:3], M,
        T=T, BITS=T.bit_length() - 1, BLOCK=block, DIRECTIONS=D, num_warps=GRADIENT_WARPS,
    )  # fmt: skip
    return found
