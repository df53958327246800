"""Rows gathered by token and, for the gradient, added up by token, as Triton kernels.

Sums go over rows in sorted order. Chunk p of PLACES sorted places adds up each of its buckets v into a row of its own,
p + v: along sorted places p and v never fall, so two pairs of them never share a sum. Then the chunks of each bucket
are added up. No atomics: results repeat bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Elements of a tile, and places of a chunk.
TILE, PLACES = 8192, 64
#: Features of a program that adds up chunks, and how many of these it holds at once.
FEATURES, PARTS = 32, 128


@triton.jit
def _gathered(tokens, rows, bias, x, R, V, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    here = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    token = tl.load(tokens + here, mask=here < R, other=0).to(tl.int64)
    named = ((token >= 0) & (token < V))[:, None]
    found = tl.load(rows + token[:, None] * H + columns[None, :], mask=named, other=0.0)
    found = (found + tl.load(bias + columns)[None, :]).to(x.dtype.element_ty)
    tl.store(x + here.to(tl.int64)[:, None] * H + columns[None, :], found, mask=(here < R)[:, None])


@triton.jit
def _chunks(
    values, buckets, order, parts, starts, ends, R, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """The sums of one chunk of sorted places, and where buckets start and end."""
    p = tl.program_id(0)
    place, columns = p * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    live = place < R
    bucket = tl.load(buckets + place, mask=live, other=0).to(tl.int32)
    row = tl.load(order + place, mask=live, other=0)
    value = tl.load(values + row[:, None] * H + columns[None, :], mask=live[:, None], other=0.0).to(tl.float32)
    first = tl.load(buckets + p * BM).to(tl.int32)
    last = tl.load(buckets + tl.minimum(p * BM + BM, R) - 1).to(tl.int32)
    for v in range(first, last + 1):
        mine = ((bucket == v) & live)[:, None]
        tl.store(parts + (p + v).to(tl.int64) * H + columns, tl.sum(tl.where(mine, value, 0.0), 0))
    if tl.program_id(1) == 0:
        before = tl.load(buckets + place - 1, mask=live & (place > 0), other=0).to(tl.int32)
        after = tl.load(buckets + place + 1, mask=place + 1 < R, other=0).to(tl.int32)
        tl.store(starts + bucket, place, mask=live & ((place == 0) | (before != bucket)))
        tl.store(ends + bucket, place + 1, mask=live & ((place == R - 1) | (after != bucket)))


@triton.jit
def _buckets(
    parts, starts, ends, found, H: tl.constexpr, BM: tl.constexpr, PARTS: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """The sum of one bucket over the chunks that hold any of it: none where it starts and ends at 0."""
    v = tl.program_id(0)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    start, end = tl.load(starts + v), tl.load(ends + v)
    chunks = tl.where(end > start, (end - 1) // BM + 1, 0)
    total = tl.zeros((PARTS, BN), tl.float32)
    for p0 in range(start // BM, chunks, PARTS):
        p = p0 + tl.arange(0, PARTS)
        here = (p + v).to(tl.int64)[:, None] * H + columns[None, :]
        total += tl.load(parts + here, mask=(p < chunks)[:, None], other=0.0)
    tl.store(found + v * H + columns, tl.sum(total, 0))


# --- launches ----------------------------------------------------------------------------------------------------


def gathered(tokens: Tensor, rows: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """See ptd_torch.encoder.embedded; its arguments are contiguous."""
    R, (V, H) = len(tokens), rows.shape
    x = rows.new_empty((R, H), dtype=dtype)
    BN = _columns(H)
    BM = TILE // BN
    if R:
        _gathered[(triton.cdiv(R, BM), H // BN)](tokens, rows, bias, x, R, V, H=H, BM=BM, BN=BN, num_warps=8)
    return x


def sums(values: Tensor, buckets: Tensor, order: Tensor, count: int) -> Tensor:
    """Sums (count, H) of values[order] by buckets, which are sorted; see ptd_torch.encoder.bucket_sums."""
    R, H = values.shape
    BN = min(_columns(H), 128)
    chunks = triton.cdiv(R, PLACES)
    parts = values.new_empty((chunks + count, H), dtype=torch.float32)
    starts, ends = torch.zeros((2, count), dtype=torch.int32, device=values.device)
    if R:
        _chunks[(chunks, H // BN)](
            values, buckets, order, parts, starts, ends, R, H=H, BM=PLACES, BN=BN, num_warps=4
        )  # fmt: skip
    found = values.new_empty((count, H), dtype=torch.float32)
    _buckets[(count, H // FEATURES)](
        parts, starts, ends, found, H=H, BM=PLACES, PARTS=PARTS, BN=FEATURES, num_warps=4
    )  # fmt: skip
    return found


def _columns(H: int) -> int:
    """Features of a tile: H is a multiple of 64."""
    return max(b for b in (64, 128, 256) if H % b == 0)
