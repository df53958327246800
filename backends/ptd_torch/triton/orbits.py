"""Powers of S4's transitions over a chunk as Triton kernels.

A program owns one feature and one orbit: of the row under A, or of one column under A, which is that of a row under the
transpose. As core does it, the first 2^k rows of an orbit times A^(2^k) are the next 2^k. Each program squares A for
itself, in place of waiting for another. What it has of rows, of the power or of a gradient is in memory between
products, which read slices of their inner axis from there: whole factors do not fit in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .products import entries

#: What an orbit is formed in, since an error in A grows T-fold: float64, on tensor cores, or float32.
EXACT = True
#: How products in float32 round, whatever the caller allows elsewhere.
PRECISION = "tf32x3"
#: Warps, and how much of the inner axis a product takes at once, forward and backward; rows of an orbit at once.
WARPS, SLICES, ROWS = (4, 4), (32, 32), 16


@triton.jit
def _product(
    a, b, total, i, j, s, rows, n: tl.constexpr,
    a_i: tl.constexpr, a_k: tl.constexpr, b_k: tl.constexpr, b_j: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Total + a b from a (rows, n) and b (n, n) in memory, by slices s of the inner axis."""
    for k in range(0, N, s.shape[0]):
        left, right = entries(a, i, k + s, a_i, a_k, rows, n), entries(b, k + s, j, b_k, b_j, n, n)
        total = tl.dot(left, right, total, PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def _forward(
    A, row, columns, rows, out, powers, power, x,
    n: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The orbits of one feature; that of the row also keeps A^(2^k) for k = 0 ... BITS.

    power (H, 1 + D, n, n) and x (H, 1 + D, T, n) are for what programs have between bits, in the dtype of the products.
    """
    h, D = tl.program_id(0).to(tl.int64), tl.num_programs(1) - 1
    orbit = h * (D + 1) + tl.program_id(1)
    A, power, x = A + h * n * n, power + orbit * n * n, x + orbit * T * n
    i = tl.arange(0, N)
    if tl.program_id(1) == 0:
        start = tl.load(row + h * n + i, mask=i < n, other=0.0).to(x.dtype.element_ty)
        rows, powers = rows + h * T * n, powers + h * (BITS + 1) * n * n
        _orbit(A, start, rows, powers, power, x, n, 1, n, 1, n, T, BITS, N, ROWS, SLICE, PRECISION)
    else:
        d = tl.program_id(1) - 1
        column = tl.load(columns + (h * n + i) * D + d, mask=i < n, other=0.0).to(x.dtype.element_ty)
        start = tl.sum(column[None, :] * entries(A, i, i, n, 1, n, n), 1)
        out += (h * D + d) * n * T
        _orbit(A, start, out, None, power, x, 1, n, 1, T, n, T, BITS, N, ROWS, SLICE, PRECISION)


@triton.jit
def _orbit(
    A, start, result, powers, power, x,
    down: tl.constexpr, right: tl.constexpr, t_stride: tl.constexpr, i_stride: tl.constexpr,
    n: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """start A^t for t = 0 ... T-1, where A's entries lie as down and right say."""
    dtype = x.dtype.element_ty
    i, s, r = tl.arange(0, N), tl.arange(0, SLICE), tl.arange(0, ROWS)
    inside, live = (i < n)[:, None] & (i < n)[None, :], (i < n)[None, :]
    square_at = i[:, None] * n + i[None, :]
    first = entries(A, i, i, down, right, n, n)
    tl.store(power + square_at, first.to(dtype), mask=inside)
    if powers is not None:
        tl.store(powers + square_at, first, mask=inside)
    tl.store(x + i, start.to(dtype), mask=i < n)
    tl.store(result + i * i_stride, start.to(tl.float32), mask=i < n)
    tl.debug_barrier()
    for k in range(BITS):
        half = 1 << k
        for t0 in range(0, half, ROWS):
            t = t0 + r
            moved = tl.zeros((ROWS, N), dtype)
            moved = _product(x, power, moved, t, i, s, half, n, n, 1, n, 1, N, PRECISION)
            t += half
            seen = live & (t < 2 * half)[:, None]
            tl.store(x + t[:, None] * n + i[None, :], moved, mask=seen)
            tl.store(result + t[:, None] * t_stride + i[None, :] * i_stride, moved.to(tl.float32), mask=seen)
        square = tl.zeros((N, N), dtype)
        square = _product(power, power, square, i, i, s, n, n, n, 1, n, 1, N, PRECISION)
        tl.debug_barrier()
        tl.store(power + square_at, square, mask=inside)
        if powers is not None:
            tl.store(powers + (k + 1) * n * n + square_at, square.to(tl.float32), mask=inside)
        tl.debug_barrier()


@triton.jit
def _backward(
    powers, columns, rows, out, grad_rows, grad_out, grad_whole, grad_A, grad_row, grad_columns, g,
    n: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients through the orbits of one feature; grad_A is (H, 1 + D, n, n), whose sum over orbits is A's.

    g (H, 1 + D, T, n) is for what programs have between bits.
    """
    h, D = tl.program_id(0).to(tl.int64), tl.num_programs(1) - 1
    orbit = h * (D + 1) + tl.program_id(1)
    powers += h * (BITS + 1) * n * n
    grad_A, g = grad_A + orbit * n * n, g + orbit * T * n
    i = tl.arange(0, N)
    inside = (i < n)[:, None] & (i < n)[None, :]
    if tl.program_id(1) == 0:
        rows, grad_rows, grad_whole = rows + h * T * n, grad_rows + h * T * n, grad_whole + h * n * n
        tl.store(grad_A + i[:, None] * n + i[None, :], entries(grad_whole, i, i, n, 1, n, n), mask=inside)
        start = _orbit_adjoint(powers, rows, grad_rows, grad_A, g, n, 1, n, 1, n, T, BITS, N, ROWS, SLICE, PRECISION)
        tl.store(grad_row + h * n + i, start, mask=i < n)
    else:
        d = tl.program_id(1) - 1
        grad_at = grad_A + i[:, None] + i[None, :] * n
        out, grad_out = out + (h * D + d) * n * T, grad_out + (h * D + d) * n * T
        tl.store(grad_at, tl.zeros((N, N), tl.float32), mask=inside)
        start = _orbit_adjoint(powers, out, grad_out, grad_A, g, 1, n, 1, T, n, T, BITS, N, ROWS, SLICE, PRECISION)
        column = tl.load(columns + (h * n + i) * D + d, mask=i < n, other=0.0)
        tl.store(grad_at, tl.load(grad_at, mask=inside) + column[:, None] * start[None, :], mask=inside)
        start = tl.sum(start[None, :] * entries(powers, i, i, 1, n, n, n), 1)
        tl.store(grad_columns + (h * n + i) * D + d, start, mask=i < n)


@triton.jit
def _orbit_adjoint(
    powers, x, grad_x, grad, g,
    down: tl.constexpr, right: tl.constexpr, t_stride: tl.constexpr, i_stride: tl.constexpr,
    n: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of _orbit by start; grad holds that by A^T, and at the end that by A, with A's strides.

    From the last doubling to the first; x and grad_x are those of the orbit.
    """
    i, s, r = tl.arange(0, N), tl.arange(0, SLICE), tl.arange(0, ROWS)
    inside, live = (i < n)[:, None] & (i < n)[None, :], (i < n)[None, :]
    for t0 in range(0, T, ROWS):
        t = t0 + r
        at = g + t[:, None] * n + i[None, :]
        tl.store(at, entries(grad_x, t, i, t_stride, i_stride, T, n), mask=live & (t < T)[:, None])
    tl.debug_barrier()
    for k in range(BITS - 1, -1, -1):
        half = 1 << k
        power, later = powers + k * n * n, g + half * n
        total = tl.zeros((N, N), tl.float32)
        total = _product(grad, power, total, i, i, s, n, n, down, right, right, down, N, PRECISION)
        total = _product(power, grad, total, i, i, s, n, n, right, down, down, right, N, PRECISION)
        for t0 in range(0, half, ROWS):
            t = t0 + r
            before, gained = entries(x, i, t, i_stride, t_stride, n, half), entries(later, t, i, n, 1, half, n)
            total = tl.dot(before, gained, total, PRECISION)
        tl.debug_barrier()
        tl.store(grad + i[:, None] * down + i[None, :] * right, total, mask=inside)
        for t0 in range(0, half, ROWS):
            t = t0 + r
            moved = entries(g, t, i, n, 1, half, n)
            moved = _product(later, power, moved, t, i, s, half, n, n, 1, right, down, N, PRECISION)
            tl.store(g + t[:, None] * n + i[None, :], moved, mask=live & (t < half)[:, None])
        tl.debug_barrier()
    return tl.load(g + i, mask=i < n, other=0.0)


def _options(n: int, T: int, backward: bool) -> dict:
    N = max(16, triton.next_power_of_2(n))
    return {
        "n": n, "T": T, "BITS": T.bit_length() - 1, "N": N, "ROWS": ROWS, "SLICE": min(SLICES[backward], N),
        "PRECISION": PRECISION if backward or not EXACT else "ieee",
        "num_warps": WARPS[backward] * (2 if N == 128 else 1), "num_stages": 1,
    }  # fmt: skip


def orbits(A: Tensor, row: Tensor, columns: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor]:
    """ptd.chunks.orbits of contiguous float32 for T a power of two, with A^(2^k) (H, log2(T) + 1, n, n) for A^T."""
    H, n, D = columns.shape
    rows, out = A.new_empty((H, T, n)), A.new_empty((H, D, n, T))
    powers = A.new_empty((H, T.bit_length(), n, n))
    dtype = torch.float64 if EXACT else torch.float32
    between = [A.new_empty((H, 1 + D, size, n), dtype=dtype) for size in (n, T)]
    _forward[(H, 1 + D)](A, row, columns, rows, out, powers, *between, **_options(n, T, False))
    return rows, out, powers


def gradients(
    powers: Tensor, columns: Tensor, rows: Tensor, out: Tensor, grad_rows: Tensor, grad_out: Tensor, grad_whole: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by A, as a part for each orbit (H, 1 + D, n, n), by row and by columns; all contiguous."""
    (H, n, D), T = columns.shape, rows.shape[1]
    grad_A, between = (rows.new_empty((H, 1 + D, size, n)) for size in (n, T))
    grad_row, grad_columns = rows.new_empty((H, n)), torch.empty_like(columns)
    _backward[(H, 1 + D)](
        powers, columns, rows, out, grad_rows, grad_out, grad_whole, grad_A, grad_row, grad_columns, between,
        **_options(n, T, True),
    )  # fmt: skip
    return grad_A, grad_row, grad_columns
