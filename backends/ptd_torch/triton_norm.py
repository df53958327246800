"""What batch norm and its gradient need per feature, as Triton kernels. Imported only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import triton_columns
from .triton_columns import placed

#: Tiles a program has at once: one that adds up, the others on their way from memory. In bfloat16 one alone would
#: be too few bytes in flight.
STAGES = 3
#: Features of a program that makes the factor; widths are a multiple of it.
FEATURES = 64


@triton.jit
def _prepare(scale, moments, factor, zero, epsilon, H: tl.constexpr, FEATURES: tl.constexpr):
    """factor = scale / sqrt(var + epsilon), and a zero."""
    columns = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    inverse = tl.rsqrt(tl.load(moments + H + columns) + epsilon)
    tl.store(factor + columns, tl.load(scale + columns) * inverse)
    if tl.program_id(0) == 0:
        tl.store(zero, 0.0)


@triton.jit
def _sums(
    dy, x, moments, parts, R, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Sums over a program's rows of dy and of dy (x - mean)."""
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    mean = tl.load(moments + columns)[None, :]
    plain = tl.zeros((BM, BN), tl.float32)
    product = tl.zeros((BM, BN), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0), num_stages=STAGES):
        _, live, here = placed(tile, R, H, columns, BM)
        d = tl.load(dy + here, mask=live, other=0.0)
        t = tl.load(x + here, mask=live, other=0.0)
        d = d.to(tl.float32)
        plain += d
        product += d * (t.to(tl.float32) - mean)
    here = tl.program_id(0) * H + columns
    tl.store(parts + here, tl.sum(plain, 0))
    tl.store(parts + tl.num_programs(0) * H + here, tl.sum(product, 0))


@triton.jit
def _sum_of_lengths(lengths, B, BLOCK: tl.constexpr):
    count = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, B, BLOCK):
        here = start + tl.arange(0, BLOCK)
        count += tl.load(lengths + here, mask=here < B, other=0).to(tl.int64)
    return tl.sum(count, 0).to(tl.float32)


@triton.jit
def _norm_adjoint(
    parts, scale, moments, lengths, found, programs, R, B, epsilon,
    H: tl.constexpr, PARTS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """From the parts of both sums: the gradients by scale and bias, and a, b, c of dx = a dy - (b x + c)."""
    columns = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    part = tl.arange(0, PARTS)
    here, live = part[:, None] * H + columns[None, :], (part < programs)[:, None]
    plain = tl.sum(tl.load(parts + here, mask=live, other=0.0), 0)
    product = tl.sum(tl.load(parts + programs * H + here, mask=live, other=0.0), 0)
    mean = tl.load(moments + columns)
    inverse = tl.rsqrt(tl.load(moments + H + columns) + epsilon)
    count = R * 1.0
    if lengths is not None:
        count = tl.maximum(_sum_of_lengths(lengths, B, PARTS), 1.0)
    product *= inverse
    a = tl.load(scale + columns) * inverse
    b = a * inverse * product / count
    tl.store(found + columns, product)
    tl.store(found + H + columns, plain)
    tl.store(found + 2 * H + columns, a)
    tl.store(found + 3 * H + columns, b)
    tl.store(found + 4 * H + columns, a * plain / count - b * mean)


# --- launches ----------------------------------------------------------------------------------------------------


def prepare(x: Tensor, scale: Tensor, moments: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The factor (H,) of x - mean, and a zero (1,) in the dtype of x."""
    H = len(scale)
    factor, zero = scale.new_empty(H), x.new_empty(1)
    _prepare[(H // FEATURES,)](scale, moments, factor, zero, epsilon, H=H, FEATURES=FEATURES, num_warps=1)
    return factor, zero


def adjoint(
    dy: Tensor, x: Tensor, scale: Tensor, moments: Tensor, lengths: Tensor | None, epsilon: float
) -> Tensor:  # fmt: skip
    """See ptd_torch.norm.norm_adjoint; all arguments are contiguous."""
    R, _, H = triton_columns.sizes(x)
    programs, tile = triton_columns.grid(R, H)
    parts = scale.new_empty((2, programs[0], H))
    _sums[programs](dy, x, moments, parts, R, STAGES=STAGES, **tile)
    found = scale.new_empty((5, H))
    features, B = triton_columns.FEATURES, 0 if lengths is None else lengths.numel()
    _norm_adjoint[(H // features,)](
        parts, scale, moments, lengths, found, programs[0], R, B, epsilon,
        H=H, PARTS=triton_columns.PARTS, FEATURES=features, num_warps=8,
    )  # fmt: skip
    return found
