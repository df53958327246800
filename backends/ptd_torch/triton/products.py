"""Sums of products as one Triton kernel."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .columns import totals

#: Triton's interpreter multiplies the bits of bfloat16 numbers as if they were integers (3.9): there products widen.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

#: Rows and outputs of a tile, inner elements a step, warps, stages: the fastest of four on an H200 in both dtypes.
TILE = (128, 128, 32, 8, 3)
#: The same for a product with its skip, by dtype.
SKIP_TILE = {torch.float32: (128, 128, 32, 8, 3), torch.bfloat16: (128, 128, 64, 8, 3)}


@triton.jit
def entries(base, i, j, i_stride, j_stride, rows, columns):
    """The (i, j) entries of a matrix, zero outside of rows x columns."""
    at = base + (i[:, None] * i_stride + j[None, :] * j_stride)
    return tl.load(at, mask=(i < rows)[:, None] & (j < columns)[None, :], other=0.0)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """Total + a b."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _rows_at(u, rows, k, live, K: tl.constexpr, BK: tl.constexpr):
    """The numbers k of rows of u, and which of these there are."""
    inner = k < K if K % BK else tl.full((BK,), 1, tl.int1)
    return tl.load(u + rows.to(tl.int64)[:, None] * K + k[None, :], mask=live & inner[None, :], other=0.0), inner


@triton.jit
def _columns_at(weight, columns, k, inner, K: tl.constexpr):
    """The numbers k of columns of weight^T."""
    return tl.load(weight + columns[None, :] * K + k[:, None], mask=inner[:, None], other=0.0)


@triton.jit
def accumulated(
    u, weight, rows, columns, live, total, K: tl.constexpr,
    PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Total + u weight^T of one tile."""
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        a, inner = _rows_at(u, rows, k, live, K, BK)
        total = dot(a, _columns_at(weight, columns, k, inner, K), total, PRECISION)
    return total


@triton.jit
def accumulated_both(
    u, weight, other, rows, columns, live, total, beside, K: tl.constexpr,
    PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Total + u weight^T and beside + u other^T of one tile, which reads u once."""
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        a, inner = _rows_at(u, rows, k, live, K, BK)
        total = dot(a, _columns_at(weight, columns, k, inner, K), total, PRECISION)
        beside = dot(a, _columns_at(other, columns, k, inner, K), beside, PRECISION)
    return total, beside


@triton.jit
def _sum_of_products(
    u, weight, v, other, y, R, K: tl.constexpr, J: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of u weight^T + v other^T."""
    tiles: tl.constexpr = N // BN
    rows = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
    columns = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    live = (rows < R)[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    total = accumulated(u, weight, rows, columns, live, total, K, PRECISION, BK)
    total = accumulated(v, other, rows, columns, live, total, J, PRECISION, BK)
    here = rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(y + here, total.to(y.dtype.element_ty), mask=live)


@triton.jit
def _product_and_skip(
    x, weight, skip, u, other, y, sums, R, K: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of x weight^T + skip u, and with other its sums over rows of u other."""
    tiles: tl.constexpr = N // BN
    block = tl.program_id(0) // tiles
    rows = block * BM + tl.arange(0, BM)
    columns = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    live = (rows < R)[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    total = accumulated(x, weight, rows, columns, live, total, K, PRECISION, BK)
    here = rows.to(tl.int64)[:, None] * N + columns[None, :]
    beside = tl.load(u + here, mask=live, other=0.0).to(tl.float32)
    total += tl.load(skip + columns).to(tl.float32)[None, :] * beside
    tl.store(y + here, total.to(y.dtype.element_ty), mask=live)
    if other is not None:
        beside *= tl.load(other + here, mask=live, other=0.0).to(tl.float32)
        tl.store(sums + block * N + columns, tl.sum(beside, 0))


def sum_of_products(u: Tensor, weight: Tensor, v: Tensor, other: Tensor) -> Tensor:
    """u weight^T + v other^T of contiguous rows u (R, K) and v (R, J), weight (N, K) and other (N, J)."""
    (R, K), N, J = u.shape, len(weight), v.shape[-1]
    BM, BN, BK, warps, stages = TILE
    BN = max(b for b in (64, 128, 256) if b <= BN and N % b == 0)
    y = torch.empty((R, N), dtype=u.dtype, device=u.device)
    _sum_of_products[(triton.cdiv(R, BM) * (N // BN),)](
        u, weight, v, other, y, R, K=K, J=J, N=N, PRECISION=precision(), BM=BM, BN=BN, BK=BK,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


def product_and_skip(
    x: Tensor, weight: Tensor, skip: Tensor, u: Tensor, other: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x weight^T + skip u of contiguous rows x (R, K) and u (R, N), and the sums (N,) over rows of u other."""
    (R, K), N = x.shape, len(weight)
    BM, BN, BK, warps, stages = SKIP_TILE[x.dtype]
    BN = max(b for b in (64, 128, 256) if b <= BN and N % b == 0)
    y = torch.empty_like(u)
    blocks = triton.cdiv(R, BM)
    sums = skip.new_empty((blocks, N), dtype=torch.float32) if other is not None else None
    _product_and_skip[(blocks * (N // BN),)](
        x, weight, skip, u, other, y, sums, R, K=K, N=N, PRECISION=precision(), BM=BM, BN=BN, BK=BK,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y, skip.new_empty(N) if sums is None else totals(sums[None])[0].to(skip.dtype)


def precision() -> str:
    """TF32 where the caller allows fast products; else three of them, which round like float32."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
