"""Sums and moments of every feature over all rows, as Triton kernels.

A fixed number of programs each walk through many tiles of rows and keep sums per element of a tile in registers; so few
partial results remain that one look adds them up. No atomics: results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ranks import ALONE, Ranks, current

#: Programs of a pass: four a multiprocessor of an H100 or H200, which with 128 threads of 128 registers are all there.
PROGRAMS = 528
#: Elements of a tile, 16 a thread of its four warps.
TILE = 2048
#: Tiles a program has at once: one that adds up, the others on their way from memory. In bfloat16 one alone would
#: be too few bytes in flight.
STAGES = 3
#: Features of a program that adds up partial results, and how many of these it holds at once.
FEATURES, PARTS = 8, 1024


@triton.jit
def placed(tile, R, H, columns, BM: tl.constexpr):
    """The rows of a tile, whether each is one of R, and where its elements lie."""
    rows = tile * BM + tl.arange(0, BM)
    return rows, (rows < R)[:, None], rows.to(tl.int64)[:, None] * H + columns[None, :]


@triton.jit
def placed_first(base, tile, columns, R, BM: tl.constexpr):
    """Where elements of a tile of whole rows lie with features first in memory: 32-bit offsets from a 64-bit start."""
    return base + tl.cast(tile, tl.int64) * BM + (columns[None, :] * R + tl.arange(0, BM)[:, None])


@triton.jit
def valid_rows(rows, lengths, R, L):
    """Which rows count: those within the length of their sequence."""
    valid = rows < R
    if lengths is not None:
        valid = valid & (rows % L < tl.load(lengths + rows // L, mask=valid, other=0))
    return valid


@triton.jit
def joined(t, valid, mean, squares, count):
    """Running mean and sum of squared distances from it, of each element, with one more value (Welford 1962)."""
    count += valid.to(tl.float32)
    share = (1.0 / tl.maximum(count, 1.0))[:, None]
    apart = tl.where(valid[:, None], t - mean, 0.0)
    return mean + apart * share, squares + apart * apart * (1.0 - share), count


@triton.jit
def store_moments(mean, squares, count, means, all_squares, counts, columns, H: tl.constexpr):
    """The moments of a program's rows as one: M2 = sum M2_i + n_i (mean_i - mean)^2 (Chan et al. 1979)."""
    m = tl.program_id(0)
    total = tl.sum(count, 0)
    whole = tl.sum(count[:, None] * mean, 0) / tl.maximum(total, 1.0)
    apart = mean - whole[None, :]
    tl.store(means + m * H + columns, whole)
    tl.store(all_squares + m * H + columns, tl.sum(squares + count[:, None] * apart * apart, 0))
    if tl.program_id(1) == 0:
        tl.store(counts + m, total)


@triton.jit
def _moments(
    x, lengths, means, squares, counts, R, L,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    mean = tl.zeros((BM, BN), tl.float32)
    apart = tl.zeros((BM, BN), tl.float32)
    count = tl.zeros((BM,), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0), num_stages=STAGES):
        rows, live, here = placed(tile, R, H, columns, BM)
        t = tl.load(x + here, mask=live, other=0.0).to(tl.float32)
        mean, apart, count = joined(t, valid_rows(rows, lengths, R, L), mean, apart, count)
    store_moments(mean, apart, count, means, squares, counts, columns, H)


@triton.jit
def _combine(
    means, squares, counts, mean, square, total, programs, H: tl.constexpr, PARTS: tl.constexpr, FEATURES: tl.constexpr
):
    """The moments of PARTS programs as one; variance in place of squares where total, room for counts, is None."""
    columns = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    group = tl.program_id(1)
    part = group * PARTS + tl.arange(0, PARTS)
    here, live = part[:, None] * H + columns[None, :], (part < programs)[:, None]
    n = tl.load(counts + part, mask=part < programs, other=0.0)
    means = tl.load(means + here, mask=live, other=0.0)
    apart = tl.load(squares + here, mask=live, other=0.0)
    count = tl.sum(n, 0)
    whole = tl.sum(n[:, None] * means, 0) / tl.maximum(count, 1.0)
    apart += n[:, None] * (means - whole[None, :]) * (means - whole[None, :])
    tl.store(mean + group * H + columns, whole)
    if total is None:
        tl.store(square + columns, tl.sum(apart, 0) / tl.maximum(count, 1.0))
    else:
        tl.store(square + group * H + columns, tl.sum(apart, 0))
        tl.store(total + group, count)


@triton.jit
def sum_of_parts(parts, k, columns, programs, H: tl.constexpr, PARTS: tl.constexpr, FEATURES: tl.constexpr):
    """The sum over the programs of the k-th of parts (K, programs, H)."""
    values = tl.zeros((PARTS, FEATURES), parts.dtype.element_ty)
    for start in range(0, programs, PARTS):
        part = start + tl.arange(0, PARTS)
        live = (part < programs)[:, None] & (columns < H)[None, :]
        here = (k * programs + part).to(tl.int64)[:, None] * H + columns[None, :]
        values += tl.load(parts + here, mask=live, other=0.0)
    return tl.sum(values, 0)


@triton.jit
def _totals(parts, found, programs, H: tl.constexpr, PARTS: tl.constexpr, FEATURES: tl.constexpr):
    """found (K, H) = the sum over the programs of parts (K, programs, H)."""
    columns = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    values = sum_of_parts(parts, tl.program_id(1), columns, programs, H, PARTS, FEATURES)
    tl.store(found + tl.program_id(1) * H + columns, values, mask=columns < H)


@triton.jit
def _dot(x, y, parts, R, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr):
    """Sums over rows of x y."""
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    product = tl.zeros((BM, BN), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0), num_stages=STAGES):
        _, live, here = placed(tile, R, H, columns, BM)
        product += tl.load(x + here, mask=live, other=0.0).to(tl.float32) * tl.load(y + here, mask=live, other=0.0)
    tl.store(parts + tl.program_id(0) * H + columns, tl.sum(product, 0))


# --- launches ----------------------------------------------------------------------------------------------------


def grid(R: int, H: int, tiling: tuple[int, int, int] | None = None) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs over R rows and H features, a multiple of 64, and the tile of each; tiling in place of the defaults."""
    programs, tile, stages = tiling or (PROGRAMS, TILE, STAGES)
    BN = max(b for b in (64, 128, 256) if H % b == 0)
    BM = tile // BN
    programs = max(1, min(programs // (H // BN), triton.cdiv(R, BM)))
    return (programs, H // BN), {"H": H, "BM": BM, "BN": BN, "STAGES": stages, "num_warps": 4}


def moments(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean and variance (2, H), float32, of x (..., L, H), contiguous, over batch and valid time."""
    R, L, H = sizes(x)
    programs, tile = grid(R, H)
    parts = moment_parts(x, programs[0])
    _moments[programs](x, lengths, *parts, R, L, **tile)
    return combined(*parts)


def moment_parts(x: Tensor, programs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the means, squared distances and counts of all programs."""
    means, squares = x.new_empty((2, programs, x.shape[-1]), dtype=torch.float32)
    return means, squares, x.new_empty(programs, dtype=torch.float32)


def combined(means: Tensor, squares: Tensor, counts: Tensor, ranks: Ranks | None = None) -> Tensor:
    """Mean and variance (2, H) from moment_parts, of the rows of all ranks, the current ones by default."""
    programs, H = means.shape
    ranks = ranks or current()
    groups = max(1, triton.cdiv(programs, PARTS))  # of no rows too
    found = means.new_empty((2, H))
    last = groups == 1 and ranks.size == 1
    into: tuple[Tensor, Tensor, Any] = (found[0], found[1], None) if last else moment_parts(means, groups)
    _combine[(H // FEATURES, groups)](
        means, squares, counts, *into, programs, H=H, PARTS=PARTS, FEATURES=FEATURES, num_warps=8
    )  # fmt: skip
    if last:
        return found
    if groups > 1:
        return combined(*into, ranks)
    return combined(*_of_all(ranks, *into), ALONE)


def _of_all(ranks: Ranks, means: Tensor, squares: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The one part of every rank, as moment_parts has them."""
    H = means.shape[-1]
    all_ = ranks.gathered(torch.cat([means[0], squares[0], counts]))
    return all_[:, :H].contiguous(), all_[:, H:-1].contiguous(), all_[:, -1].contiguous()


def totals(parts: Tensor) -> Tensor:
    """The sum over programs of parts (K, programs, H)."""
    K, programs, H = parts.shape
    found = parts.new_empty((K, H))
    _totals[(triton.cdiv(H, FEATURES), K)](parts, found, programs, H=H, PARTS=PARTS, FEATURES=FEATURES, num_warps=8)
    return found


def dot(x: Tensor, y: Tensor) -> Tensor:
    """The sums (H,), float32, over rows of x y, both contiguous (R, H)."""
    R, H = x.shape
    programs, tile = grid(R, H)
    parts = x.new_empty((1, programs[0], H), dtype=torch.float32)
    _dot[programs](x, y, parts, R, **tile)
    return totals(parts)[0]


def sizes(x: Tensor) -> tuple[int, int, int]:
    """R rows, L of them a sequence, and H features."""
    return x.numel() // x.shape[-1], x.shape[-2], x.shape[-1]
