"""The gated sum that ends a block, and its gradient, as Triton kernels.

    out = x + drop(keep sigmoid(z + b))

Where keep is a product as well it lies before z in each row, as its bias does before b, and one product makes both.
Products are the library's: one kernel that also multiplied lost to them (benchmarks/notes.md).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .columns import combined, grid, joined, moment_parts, placed, sizes, store_moments, totals, valid_rows
from .dropout import hashed


@triton.jit
def sigmoid(x):
    """1/(1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def dropped(x, rows, first, columns, key, threshold, scale, H, L, DROPOUT: tl.constexpr):
    """x with the mask of ptd_torch.dropout; rows from first on. DROPOUT is 0 for none, 1 for one per element, 2 for one
    tied over time, 3 for that where all rows are of one sequence, so that each feature is hashed once."""
    if DROPOUT == 0:
        return x
    else:
        if DROPOUT == 3:
            index = ((first // L) * H + columns)[None, :]
        else:
            place = (rows // L) if DROPOUT == 2 else rows
            index = place[:, None] * H + columns[None, :]
        bits = hashed(index.to(tl.uint32) + tl.load(key).to(tl.uint32))
        return tl.where(bits >= threshold.to(tl.uint32), x * scale, 0.0)


@triton.jit
def _forward(
    keep, z, bias, x, key, lengths, out, means, squares, counts, R, L, threshold, scale,
    DROPOUT: tl.constexpr, MOMENTS: tl.constexpr,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    a, b = _biases(keep, bias, columns, H)
    mean = tl.zeros((BM, BN), tl.float32)
    apart = tl.zeros((BM, BN), tl.float32)
    count = tl.zeros((BM,), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0), num_stages=STAGES):
        rows, live, here = placed(tile, R, H, columns, BM)
        k, gate, _ = _factors(keep, z, a, rows, columns, live, here, H)
        base = tl.load(x + here, mask=live, other=0.0).to(tl.float32)
        t = dropped(k * sigmoid(gate + b), rows, tile * BM, columns, key, threshold, scale, H, L, DROPOUT)
        t = (base + t).to(out.dtype.element_ty)
        tl.store(out + here, t, mask=live)
        if MOMENTS:  # of what was stored: the next norm reads that
            valid = valid_rows(rows, lengths, R, L)
            mean, apart, count = joined(t.to(tl.float32), valid, mean, apart, count)
    if MOMENTS:
        store_moments(mean, apart, count, means, squares, counts, columns, H)


@triton.jit
def _backward(
    dout, keep, z, bias, key, dkeep, dz, sums, R, L, threshold, scale,
    DROPOUT: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    a, b = _biases(keep, bias, columns, H)
    total = tl.zeros((BM, BN), tl.float32)
    if keep is None:
        of_keep = tl.zeros((BM, BN), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0), num_stages=STAGES):
        rows, live, here = placed(tile, R, H, columns, BM)
        d = tl.load(dout + here, mask=live, other=0.0).to(tl.float32)
        k, gate, beside = _factors(keep, z, a, rows, columns, live, here, H)
        s = sigmoid(gate + b)
        d = dropped(d, rows, tile * BM, columns, key, threshold, scale, H, L, DROPOUT) * s
        if keep is None:
            tl.store(dz + beside - H, d.to(dz.dtype.element_ty), mask=live)
            of_keep += d
        else:
            tl.store(dkeep + here, d.to(dz.dtype.element_ty), mask=live)
        d *= k * (1.0 - s)
        tl.store(dz + beside, d.to(dz.dtype.element_ty), mask=live)
        total += d
    here = tl.program_id(0) * H + columns
    if keep is None:
        tl.store(sums + here, tl.sum(of_keep, 0))
        here += tl.num_programs(0) * H
    tl.store(sums + here, tl.sum(total, 0))


@triton.jit
def _biases(keep, bias, columns, H: tl.constexpr):
    """Those of keep and of the gate, (1, BN)."""
    if keep is None:
        return tl.load(bias + columns)[None, :], tl.load(bias + H + columns)[None, :]
    else:
        return 0.0, tl.load(bias + columns)[None, :]


@triton.jit
def _factors(keep, z, a, rows, columns, live, here, H: tl.constexpr):
    """A tile of keep and of the gate before its bias, and where the gate's lies in z."""
    if keep is None:
        beside = rows.to(tl.int64)[:, None] * (2 * H) + H + columns[None, :]
        k = tl.load(z + beside - H, mask=live, other=0.0).to(tl.float32) + a
    else:
        beside = here
        k = tl.load(keep + here, mask=live, other=0.0).to(tl.float32)
    return k, tl.load(z + beside, mask=live, other=0.0).to(tl.float32), beside


# --- launches ----------------------------------------------------------------------------------------------------


def forward(
    keep: Tensor | None, z: Tensor, bias: Tensor, x: Tensor, key: Tensor | None, lengths: Tensor | None,
    rate: float, tied: bool, moments: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See ptd_torch.gate.gated_sum; its arguments are contiguous."""
    R, L, H = sizes(x)
    out = x.new_empty(x.shape)
    programs, tile = grid(R, H)
    parts = moment_parts(x, programs[0])
    _forward[programs](
        keep, z, bias, x, key, lengths, out, *parts, R, L, *thresholds(rate),
        DROPOUT=masks(key, tied, L, tile["BM"]), MOMENTS=moments, **tile,
    )  # fmt: skip
    return out, combined(*parts) if moments else bias.new_empty((2, H))


def backward(
    dout: Tensor, keep: Tensor | None, z: Tensor, bias: Tensor, key: Tensor | None, rate: float, tied: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See ptd_torch.gate.gated_sum_adjoint; its arguments are contiguous."""
    R, L, H = sizes(dout)
    dkeep, dz = z.new_empty(0 if keep is None else keep.shape), z.new_empty(z.shape)
    programs, tile = grid(R, H)
    sums = bias.new_empty((len(bias) // H, programs[0], H))
    _backward[programs](
        dout, keep, z, bias, key, dkeep, dz, sums, R, L, *thresholds(rate),
        DROPOUT=masks(key, tied, L, tile["BM"]), **tile,
    )  # fmt: skip
    return dkeep, dz, totals(sums).view(-1)


def masks(key: Tensor | None, tied: bool, L: int, BM: int) -> int:
    """DROPOUT of the kernels, for sequences of L rows and tiles of BM."""
    if key is None or not tied:
        return 0 if key is None else 1
    return 2 if L % BM else 3


def thresholds(rate: float) -> tuple[int, float]:
    """From where on a hash of 32 bits keeps its element, and what the kept are multiplied by."""
    return int(rate * 2**32), 1 / (1 - rate)
