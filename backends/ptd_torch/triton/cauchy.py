"""Sums over poles at the roots of unity as Triton kernels, and their gradients.

A pole's resolvent S is made anew from its parameters wherever it is wanted, for all numerators at once. Conjugate
pairs are joined: with d = 2i s - c z and e its partner's, s = sin h, c = cos h, z = Lambda step,

    v/d + conj(v)/e = (4i s Re v - 2 c Re(v conj z)) / (d e),   d e = c^2 |z|^2 - 4 s^2 - 4i s c Re z,

so that a pair costs one division, and numerators are real: sums of A and B, sum_n alpha_n/D_n and sum_n beta_n/D_n,
make i s A - c B. All is divided by |z|, which keeps D within the range of z and 1/z. Without pairs it is A + i B over
D = 2i s - c z.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: Numerators and frequencies of a program that sums over poles, and its warps.
FORWARD, FORWARD_WARPS = (4, 512), 4

#: Numerators, frequencies and poles of a tile of a program that sums over frequencies, its warps; programs that keep
#: the device busy.
BACKWARD, BACKWARD_WARPS, PROGRAMS = (4, 8, 32), 4, 1056


@triton.jit
def _resolvent(first, second, s, c, PAIRS: tl.constexpr):
    """1/D: with PAIRS of |z| and 4 Re z/|z|, else of Re z and Im z. Scaled, so that no square leaves the range."""
    if PAIRS:
        re = (c * first - 2.0 * s) * (c + 2.0 * s / first)  # in factors, as core has it
        im = -s * c * second
    else:
        re = -c * first
        im = 2.0 * s - c * second
    scale = 1.0 / tl.maximum(tl.abs(re), tl.abs(im))
    re, im = re * scale, im * scale
    scale = scale / (re * re + im * im)
    return re * scale, -im * scale


@triton.jit
def _sums(
    numerators, poles, circle, out, Q, H, N, F,
    PAIRS: tl.constexpr, BQ: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Sums of BQ numerators over all poles of one feature at BF frequencies."""
    h = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    q = tl.program_id(2) * BQ + tl.arange(0, BQ)
    inside = f < F
    s = tl.load(circle + f, mask=inside, other=1.0)
    c = tl.load(circle + F + f, mask=inside, other=0.0)
    a_re = tl.zeros((BQ, BF), tl.float32)
    a_im = tl.zeros((BQ, BF), tl.float32)
    b_re = tl.zeros((BQ, BF), tl.float32)
    b_im = tl.zeros((BQ, BF), tl.float32)
    poles_h = poles + h * N
    at = numerators + (q * H + h) * N
    other = numerators + ((Q + q) * H + h) * N
    for n in range(N):
        first = tl.load(poles_h + n)
        second = tl.load(poles_h + H * N + n)
        alpha = tl.load(at + n, mask=q < Q, other=0.0)[:, None]
        beta = tl.load(other + n, mask=q < Q, other=0.0)[:, None]
        r_re, r_im = _resolvent(first, second, s, c, PAIRS)
        a_re += alpha * r_re[None, :]
        a_im += alpha * r_im[None, :]
        b_re += beta * r_re[None, :]
        b_im += beta * r_im[None, :]
    if PAIRS:
        y_re = -s[None, :] * a_im - c[None, :] * b_re
        y_im = s[None, :] * a_re - c[None, :] * b_im
    else:
        y_re = a_re - b_im
        y_im = a_im + b_re
    mask = (q < Q)[:, None] & inside[None, :]
    tl.store(out + (q[:, None] * H + h) * F + f[None, :], y_re, mask=mask)
    tl.store(out + ((Q + q)[:, None] * H + h) * F + f[None, :], y_im, mask=mask)


@triton.jit
def _gradients(
    grad, numerators, poles, circle, by_numerators, by_poles, Q, H, N, F, share,
    PAIRS: tl.constexpr, BQ: tl.constexpr, BF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients by BQ numerators, and what these add to that by the poles, of BN poles over a share of frequencies."""
    tiles = tl.cdiv(N, BN)
    h = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    part, group = tl.program_id(1), tl.program_id(2)
    q = group * BQ + tl.arange(0, BQ)
    live, known = n < N, q < Q
    first = tl.load(poles + h * N + n, mask=live, other=1.0)[None, :]
    second = tl.load(poles + (H + h) * N + n, mask=live, other=1.0)[None, :]
    mask = known[:, None] & live[None, :]
    alpha = tl.load(numerators + (q[:, None] * H + h) * N + n[None, :], mask=mask, other=0.0)[:, None, :]
    beta = tl.load(numerators + ((Q + q)[:, None] * H + h) * N + n[None, :], mask=mask, other=0.0)[:, None, :]
    by_alpha = tl.zeros((BQ, BF, BN), tl.float32)
    by_beta = tl.zeros((BQ, BF, BN), tl.float32)
    by_first = tl.zeros((BF, BN), tl.float32)
    by_second = tl.zeros((BF, BN), tl.float32)
    begin = part * share
    for f0 in range(begin, tl.minimum(begin + share, F), BF):
        f = f0 + tl.arange(0, BF)
        s = tl.load(circle + f, mask=f < F, other=1.0)
        c = tl.load(circle + F + f, mask=f < F, other=0.0)
        seen = known[:, None] & (f < F)[None, :]
        g_re = tl.load(grad + (q[:, None] * H + h) * F + f[None, :], mask=seen, other=0.0)
        g_im = tl.load(grad + ((Q + q)[:, None] * H + h) * F + f[None, :], mask=seen, other=0.0)
        # The gradients by A and by B: conj(i s) g and -c g, or g and conj(i) g.
        if PAIRS:
            u_re, u_im = s[None, :] * g_im, -s[None, :] * g_re
            w_re, w_im = -c[None, :] * g_re, -c[None, :] * g_im
        else:
            u_re, u_im = g_re, g_im
            w_re, w_im = g_im, -g_re
        u_re, u_im, w_re, w_im = u_re[:, :, None], u_im[:, :, None], w_re[:, :, None], w_im[:, :, None]
        s, c = s[:, None], c[:, None]
        r_re, r_im = _resolvent(first, second, s, c, PAIRS)
        by_alpha += u_re * r_re[None, :, :] + u_im * r_im[None, :, :]
        by_beta += w_re * r_re[None, :, :] + w_im * r_im[None, :, :]
        e_re = tl.sum(alpha * u_re + beta * w_re, 0)
        e_im = tl.sum(alpha * u_im + beta * w_im, 0)
        # By D: -e conj(1/D)^2.
        e_re, e_im = e_re * r_re + e_im * r_im, e_im * r_re - e_re * r_im
        e_re, e_im = -(e_re * r_re + e_im * r_im), -(e_im * r_re - e_re * r_im)
        if PAIRS:
            by_first += e_re * (c * c + 4.0 * (s / first) * (s / first))
            by_second -= e_im * s * c
        else:
            by_first -= e_re * c
            by_second -= e_im * c
    mask = known[:, None] & live[None, :]
    row = part * 2 * Q + q[:, None]
    tl.store(by_numerators + (row * H + h) * N + n[None, :], tl.sum(by_alpha, 1), mask=mask)
    tl.store(by_numerators + ((row + Q) * H + h) * N + n[None, :], tl.sum(by_beta, 1), mask=mask)
    row = (part * tl.num_programs(2) + group) * 2
    tl.store(by_poles + (row * H + h) * N + n, tl.sum(by_first, 0), mask=live)
    tl.store(by_poles + ((row + 1) * H + h) * N + n, tl.sum(by_second, 0), mask=live)


def sums(numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> Tensor:
    """Sums over poles, planes (2, Q, H, F), of contiguous (2, Q, H, N), (2, H, N) and (2, F)."""
    (_, Q, H, N), F = numerators.shape, circle.shape[1]
    out = numerators.new_empty((2, Q, H, F))
    (BQ, BF), warps = FORWARD, FORWARD_WARPS
    grid = (H, triton.cdiv(F, BF), triton.cdiv(Q, BQ))
    _sums[grid](numerators, poles, circle, out, Q, H, N, F, PAIRS=pairs, BQ=BQ, BF=BF, num_warps=warps)
    return out


def gradients(grad: Tensor, numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """The gradients of sums by numerators and poles."""
    (_, Q, H, N), F = numerators.shape, circle.shape[1]
    BQ, BF, BN = BACKWARD
    tiles, groups = triton.cdiv(N, BN), triton.cdiv(Q, BQ)
    share = triton.cdiv(triton.cdiv(F, BF), max(1, PROGRAMS // (H * tiles * groups))) * BF
    parts = triton.cdiv(F, share)
    by_numerators = numerators.new_empty((parts, 2, Q, H, N))
    by_poles = numerators.new_empty((parts * groups, 2, H, N))
    _gradients[(H * tiles, parts, groups)](
        grad, numerators, poles, circle, by_numerators, by_poles, Q, H, N, F, share,
        PAIRS=pairs, BQ=BQ, BF=BF, BN=BN, num_warps=BACKWARD_WARPS,
    )  # fmt: skip
    return by_numerators.sum(0), by_poles.sum(0)
