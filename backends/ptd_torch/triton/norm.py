"""What batch norm and its gradient need per feature, as Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .columns import FEATURES, grid, placed, sizes, sum_of_parts, valid_rows

#: Programs, elements of a tile and stages of the pass with four sums, which leave room for smaller tiles.
THROUGH_SKIP = (1056, 512, 4)
#: Partial results that the program which adds them up holds at once.
PARTS = 256
#: Features of a program that makes the factor; widths are a multiple of it.
FACTORS = 64


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
def _add_skip(
    du, dy, x, skip, moments, lengths, parts, R, L,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """du + skip dy, zero from lengths on, in place of du, and sums over a program's rows of that and of dy, plain and
    times x - mean."""
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    mean = tl.load(moments + columns)[None, :]
    through = tl.load(skip + columns)[None, :].to(tl.float32)
    plain = tl.zeros((BM, BN), tl.float32)
    product = tl.zeros((BM, BN), tl.float32)
    of_dy = tl.zeros((BM, BN), tl.float32)
    product_of_dy = tl.zeros((BM, BN), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0), num_stages=STAGES):
        rows, live, here = placed(tile, R, H, columns, BM)
        d = tl.load(du + here, mask=live, other=0.0)
        g = tl.load(dy + here, mask=live, other=0.0)
        t = tl.load(x + here, mask=live, other=0.0)
        g = g.to(tl.float32)
        d = (d.to(tl.float32) + through * g).to(du.dtype.element_ty)
        if lengths is not None:
            d = tl.where(valid_rows(rows, lengths, R, L)[:, None], d, 0.0)
        tl.store(du + here, d, mask=live)
        d = d.to(tl.float32)
        apart = t.to(tl.float32) - mean
        plain += d
        product += d * apart
        of_dy += g
        product_of_dy += g * apart
    here = tl.program_id(0) * H + columns
    step = tl.num_programs(0) * H
    tl.store(parts + here, tl.sum(plain, 0))
    tl.store(parts + step + here, tl.sum(product, 0))
    tl.store(parts + 2 * step + here, tl.sum(of_dy, 0))
    tl.store(parts + 3 * step + here, tl.sum(product_of_dy, 0))


@triton.jit
def _sum_of_lengths(lengths, B, BLOCK: tl.constexpr):
    count = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, B, BLOCK):
        here = start + tl.arange(0, BLOCK)
        count += tl.load(lengths + here, mask=here < B, other=0).to(tl.int64)
    return tl.sum(count, 0).to(tl.float32)


@triton.jit
def _norm_adjoint(
    parts, scale, bias, moments, lengths, found, programs, R, B, epsilon,
    H: tl.constexpr, PARTS: tl.constexpr, FEATURES: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """From the parts of both sums: the gradients by scale and bias, and a, b, c of dx = a dy - (b x + c). With SKIP
    from the parts of two more, of another dy, the sum of that times the norm's output."""
    columns = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    plain = sum_of_parts(parts, 0, columns, programs, H, PARTS, FEATURES)
    product = sum_of_parts(parts, 1, columns, programs, H, PARTS, FEATURES)
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
    if SKIP:
        of_dy = sum_of_parts(parts, 2, columns, programs, H, PARTS, FEATURES)
        product_of_dy = sum_of_parts(parts, 3, columns, programs, H, PARTS, FEATURES)
        tl.store(found + 5 * H + columns, a * product_of_dy + tl.load(bias + columns) * of_dy)


# --- launches ----------------------------------------------------------------------------------------------------


def prepare(x: Tensor, scale: Tensor, moments: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The factor (H,) of x - mean, and a zero (1,) in the dtype of x."""
    H = len(scale)
    factor, zero = scale.new_empty(H), x.new_empty(1)
    _prepare[(H // FACTORS,)](scale, moments, factor, zero, epsilon, H=H, FEATURES=FACTORS, num_warps=1)
    return factor, zero


def adjoint(
    dy: Tensor, x: Tensor, scale: Tensor, moments: Tensor, lengths: Tensor | None, epsilon: float
) -> Tensor:  # fmt: skip
    """See ptd_torch.norm.norm_adjoint; all arguments are contiguous."""
    R, _, H = sizes(x)
    programs, tile = grid(R, H)
    parts = scale.new_empty((2, programs[0], H))
    _sums[programs](dy, x, moments, parts, R, **tile)
    return _found(parts, scale, None, moments, lengths, R, epsilon)


def adjoint_through_skip(
    du: Tensor, dy: Tensor, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor, moments: Tensor,
    lengths: Tensor | None, epsilon: float,
) -> Tensor:  # fmt: skip
    """adjoint of du + skip dy, which takes the place of du, and as sixth row the gradient of skip."""
    R, L, H = sizes(x)
    programs, tile = grid(R, H, THROUGH_SKIP)
    parts = scale.new_empty((4, programs[0], H))
    _add_skip[programs](du, dy, x, skip, moments, lengths, parts, R, L, **tile)
    return _found(parts, scale, bias, moments, lengths, R, epsilon)


def _found(
    parts: Tensor, scale: Tensor, bias: Tensor | None, moments: Tensor, lengths: Tensor | None, R: int, epsilon: float
) -> Tensor:
    """What _norm_adjoint finds; six rows with a bias."""
    _, programs, H = parts.shape
    found = scale.new_empty((5 if bias is None else 6, H))
    B = 0 if lengths is None else lengths.numel()
    _norm_adjoint[(H // FEATURES,)](
        parts, scale, bias, moments, lengths, found, programs, R, B, epsilon,
        H=H, PARTS=PARTS, FEATURES=FEATURES, SKIP=bias is not None, num_warps=8,
    )  # fmt: skip
    return found
