"""The end of a block as Triton kernels: gelu, and products whose epilogues are what stands beside them.

    g = drop(gelu(y)),  z = g W^T,  out = x + drop(keep sigmoid(z + b))

Factors of products lie in memory, each along the inner dimension. Imported only where Triton is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_columns
from .triton_columns import placed, valid_rows
from .triton_gate import dropped, masks, sigmoid, thresholds
from .triton_products import accumulated, precision

#: Rows and outputs of a tile, inner elements a step, warps, stages, and at most so many registers a thread, so that two
#: programs share a multiprocessor: one multiplies while the other reads and writes. A step reads rows of 128 bytes.
TILE = {torch.float32: (128, 128, 32, 8, 3, 128), torch.bfloat16: (128, 128, 64, 8, 3, 128)}
#: sqrt(8/pi) and the cubic factor of gelu (ptd.model.gelu): 0.5 (1 + tanh(v)) = sigmoid(2 v).
_TWICE, _CUBIC = tl.constexpr(1.5957691216057308), tl.constexpr(0.044715)


@triton.jit
def gelu(y):
    """See ptd.model.gelu."""
    return y * sigmoid((y + y * y * y * _CUBIC) * _TWICE)


@triton.jit
def gelu_slope(y):
    """The derivative of gelu."""
    s = sigmoid((y + y * y * y * _CUBIC) * _TWICE)
    return s + y * s * (1.0 - s) * (1.0 + y * y * _CUBIC * 3.0) * _TWICE


@triton.jit
def _activated(
    y, key, g, R, L, threshold, scale, DROPOUT: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    tile = tl.program_id(0)
    rows, live, here = placed(tile, R, H, columns, BM)
    t = gelu(tl.load(y + here, mask=live, other=0.0).to(tl.float32))
    t = dropped(t, rows, tile * BM, columns, key, threshold, scale, H, L, DROPOUT)
    tl.store(g + here, t.to(g.dtype.element_ty), mask=live)


@triton.jit
def _tile_of(tile, R, columns, WHOLE: tl.constexpr, H: tl.constexpr, BM: tl.constexpr):
    """The rows of a tile, where it starts, which rows there are, and where its elements lie from there.

    Small offsets from one start, and no masks if tiles are whole, leave registers to products.
    """
    local = tl.arange(0, BM)
    rows = tile * BM + local
    live = tl.full((BM, 1), 1, tl.int1) if WHOLE else (rows < R)[:, None]
    return rows, tl.cast(tile, tl.int64) * (BM * H), live, local[:, None] * H + columns[None, :]


@triton.jit
def _end_product(
    g, weight, bias, keep, x, key, lengths, z, out, means, squares, counts, R, L, threshold, scale,
    DROPOUT: tl.constexpr, MOMENTS: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // (H // BN)
    columns = (tl.program_id(0) % (H // BN)) * BN + tl.arange(0, BN)
    rows, start, live, here = _tile_of(tile, R, columns, WHOLE, H, BM)
    total = tl.zeros((BM, BN), tl.float32)
    total = accumulated(g + start, weight, tl.arange(0, BM), columns, live, total, H, PRECISION, BK)
    kept = total.to(z.dtype.element_ty)
    tl.store(z + start + here, kept, mask=live)
    gate = sigmoid(kept.to(tl.float32) + tl.load(bias + columns)[None, :])
    t = tl.load(keep + start + here, mask=live, other=0.0).to(tl.float32) * gate
    t = dropped(t, rows, tile * BM, columns, key, threshold, scale, H, L, DROPOUT)
    t = (tl.load(x + start + here, mask=live, other=0.0).to(tl.float32) + t).to(out.dtype.element_ty)
    tl.store(out + start + here, t, mask=live)
    if MOMENTS:  # of what was stored: the next norm reads that
        valid = valid_rows(rows, lengths, R, L)
        t = tl.where(valid[:, None], t.to(tl.float32), 0.0)
        count = tl.sum(valid.to(tl.float32), 0)
        mean = tl.sum(t, 0) / tl.maximum(count, 1.0)
        apart = tl.where(valid[:, None], t - mean[None, :], 0.0)
        tl.store(means + tile * H + columns, mean)
        tl.store(squares + tile * H + columns, tl.sum(apart * apart, 0))
        if tl.program_id(0) % (H // BN) == 0:
            tl.store(counts + tile, count)


@triton.jit
def _end_product_gradient(
    dz, transposed, y, dkeep, key, dy, R, L, threshold, scale,
    DROPOUT: tl.constexpr, KEEPS_Y: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dy = gelu'(y) drop(dz W), and the gradient of keep, which is y or g."""
    tile = tl.program_id(0) // (H // BN)
    columns = (tl.program_id(0) % (H // BN)) * BN + tl.arange(0, BN)
    rows, start, live, here = _tile_of(tile, R, columns, WHOLE, H, BM)
    d = tl.zeros((BM, BN), tl.float32)
    d = accumulated(dz + start, transposed, tl.arange(0, BM), columns, live, d, H, PRECISION, BK)
    d = d.to(dy.dtype.element_ty)
    # Stores nothing, but for it the compiler (3.6) keeps the layout of the product and moves all that follows into it.
    tl.store(dy + start + here, d, mask=live & (rows < 0)[:, None])
    d = d.to(tl.float32)
    beside = tl.load(dkeep + start + here, mask=live, other=0.0).to(tl.float32)
    if not KEEPS_Y:
        d += beside
    d = dropped(d, rows, tile * BM, columns, key, threshold, scale, H, L, DROPOUT)
    d *= gelu_slope(tl.load(y + start + here, mask=live, other=0.0).to(tl.float32))
    if KEEPS_Y:
        d += beside
    tl.store(dy + start + here, d.to(dy.dtype.element_ty), mask=live)


# --- launches ----------------------------------------------------------------------------------------------------


def activated(y: Tensor, key: Tensor | None, rate: float, tied: bool) -> Tensor:
    """drop(gelu(y)) of contiguous y (..., L, H)."""
    R, L, H = triton_columns.sizes(y)
    g = y.new_empty(y.shape)
    (_, across), tile = triton_columns.grid(R, H)
    _activated[triton.cdiv(R, tile["BM"]), across](
        y, key, g, R, L, *thresholds(rate), DROPOUT=masks(key, tied, L, tile["BM"]), **tile
    )  # fmt: skip
    return g


def forward(
    g: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, x: Tensor, key: Tensor | None, lengths: Tensor | None,
    rate: float, tied: bool, moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """z, out and the moments of ptd_torch.end.block_end; arguments are contiguous."""
    R, L, H = triton_columns.sizes(g)
    z, out = g.new_empty(g.shape), g.new_empty(g.shape)
    tile, options = _tile(H, g.dtype)
    tiles = triton.cdiv(R, tile["BM"])
    parts = triton_columns.moment_parts(g, tiles)
    _end_product[(tiles * (H // tile["BN"]),)](
        g, weight, bias, keep, x, key, lengths, z, out, *parts, R, L, *thresholds(rate),
        DROPOUT=masks(key, tied, L, tile["BM"]), MOMENTS=moments, WHOLE=R % tile["BM"] == 0, PRECISION=precision(), H=H,
        **tile, **options,
    )  # fmt: skip
    return z, out, triton_columns.combined(*parts) if moments else bias.new_empty((2, H))


def backward(
    dz: Tensor, transposed: Tensor, y: Tensor, dkeep: Tensor, key: Tensor | None, rate: float, tied: bool, keeps_y: bool
) -> Tensor:
    """The gradient by y, from those by z and keep and from weight^T, contiguous."""
    R, L, H = triton_columns.sizes(y)
    dy = y.new_empty(y.shape)
    tile, options = _tile(H, y.dtype)
    _end_product_gradient[(triton.cdiv(R, tile["BM"]) * (H // tile["BN"]),)](
        dz, transposed, y, dkeep, key, dy, R, L, *thresholds(rate), DROPOUT=masks(key, tied, L, tile["BM"]),
        KEEPS_Y=keeps_y, WHOLE=R % tile["BM"] == 0, PRECISION=precision(), H=H, **tile, **options,
    )  # fmt: skip
    return dy


def _tile(H: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int | None]]:
    """Sizes of a tile, and what the compiler is asked for."""
    BM, BN, BK, warps, stages, registers = TILE[dtype]
    BN = max(b for b in (64, 128) if b <= BN and H % b == 0)
    options = {"num_warps": warps, "num_stages": stages}
    # Three TF32 products in place of one take more registers.
    wide = dtype == torch.float32 and precision() != "tf32"
    return {"BM": BM, "BN": BN, "BK": BK}, options if wide else options | {"maxnreg": registers}
