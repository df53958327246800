"""Zero-order hold and its gradient as Triton kernels.

In double precision: a few thousand numbers, whose phases a recurrence multiplies by as many steps as it remembers. It
also leaves phi_1 a plain quotient, down to where the first terms of its series serve.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .complex import loaded, times

WARPS = 1


@triton.jit
def _terms(Lambda, step, at, M, some):
    """z = Lambda step, e^z, phi_1(z) and its derivative, all complex."""
    s = tl.load(step).to(tl.float64)
    l_re, l_im = loaded(Lambda, at, M, some)
    l_re, l_im = l_re.to(tl.float64), l_im.to(tl.float64)
    z_re, z_im = l_re * s, l_im * s
    size = tl.exp(z_re)
    e_re, e_im = size * tl.cos(z_im), size * tl.sin(z_im)
    square = z_re * z_re + z_im * z_im
    # At the radius of 1e-5 the quotients lose 2^-53 / |z| and / |z|^2, 1e-11 and 1e-6 of 1, and the series, whose next
    # terms are z^2 / 6 and z / 3, as much. A slope counts as |z| times the rest of a gradient.
    near = square < 1e-10
    square = tl.where(near, 1.0, square)
    p_re, p_im = _over(e_re - 1.0, e_im, z_re, z_im, square)
    d_re, d_im = _over(e_re - p_re, e_im - p_im, z_re, z_im, square)
    p_re, p_im = tl.where(near, 1.0 + z_re / 2, p_re), tl.where(near, z_im / 2, p_im)
    d_re, d_im = tl.where(near, 0.5, d_re), tl.where(near, 0.0, d_im)
    return s, l_re, l_im, e_re, e_im, p_re, p_im, d_re, d_im


@triton.jit
def _over(x_re, x_im, z_re, z_im, square):
    """x / z, with square = |z|^2."""
    q_re, q_im = times(x_re, x_im, z_re, -z_im)
    return q_re / square, q_im / square


@triton.jit
def _forward(Lambda, step, a, gain, M, K: tl.constexpr):
    h, m = tl.program_id(0), tl.arange(0, K)
    some, at = m < M, h * 2 * M + m
    s, _, _, e_re, e_im, p_re, p_im, _, _ = _terms(Lambda, step + h, at, M, some)
    tl.store(a + at, e_re.to(tl.float32), mask=some)
    tl.store(a + at + M, e_im.to(tl.float32), mask=some)
    tl.store(gain + at, (s * p_re).to(tl.float32), mask=some)
    tl.store(gain + at + M, (s * p_im).to(tl.float32), mask=some)


@triton.jit
def _gradient(Lambda, step, grad_a, grad_gain, grad_Lambda, grad_step, M, K: tl.constexpr):
    """da = a (s dL + L ds) and d gain = s^2 phi_1' dL + e^z ds; cotangents are multiplied by conjugates of factors."""
    h, m = tl.program_id(0), tl.arange(0, K)
    some, at = m < M, h * 2 * M + m
    s, l_re, l_im, e_re, e_im, _, _, d_re, d_im = _terms(Lambda, step + h, at, M, some)
    x_re, x_im = loaded(grad_a, at, M, some)
    y_re, y_im = loaded(grad_gain, at, M, some)
    # The loaded cotangents widen in their products.
    w_re, w_im = times(x_re, x_im, e_re, -e_im)
    v_re, _ = times(y_re, y_im, e_re, -e_im)
    g_re, g_im = times(y_re, y_im, s * d_re, -s * d_im)
    tl.store(grad_Lambda + at, (s * (w_re + g_re)).to(tl.float32), mask=some)
    tl.store(grad_Lambda + at + M, (s * (w_im + g_im)).to(tl.float32), mask=some)
    by_step = tl.where(some, w_re * l_re + w_im * l_im + v_re, 0.0)
    tl.store(grad_step + h, tl.sum(by_step, 0).to(tl.float32))


def zoh(Lambda: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """See ptd_torch.diagonal.zoh; arguments are contiguous."""
    H, _, M = Lambda.shape
    a, gain = Lambda.new_empty(Lambda.shape), Lambda.new_empty(Lambda.shape)
    _forward[(H,)](Lambda, step, a, gain, M, K=triton.next_power_of_2(M), num_warps=WARPS)
    return a, gain


def gradients(Lambda: Tensor, step: Tensor, grad_a: Tensor, grad_gain: Tensor) -> tuple[Tensor, Tensor]:
    """Those by Lambda and step."""
    H, _, M = Lambda.shape
    found = Lambda.new_empty(Lambda.shape), step.new_empty(step.shape)
    _gradient[(H,)](Lambda, step, grad_a, grad_gain, *found, M, K=triton.next_power_of_2(M), num_warps=WARPS)
    return found
