"""Layer norm and its gradient, for two readers at once, as Triton kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .columns import placed_first, sizes, totals


class Tile(NamedTuple):
    """How a kernel is cut: elements of a tile, elements a thread, programs (None: one a tile), stages of its loop."""

    elements: int
    each: int
    programs: int | None
    stages: int


#: Of 8 and of 39 on an H200 in bfloat16 the fastest at 128 features; at 256 and 512 others take up to a sixth less.
FORWARD = Tile(8192, 16, None, 1)
#: Its programs keep the sums of two leaves' gradients, per element of their tile.
BACKWARD = Tile(4096, 16, 792, 1)


@triton.jit
def _places(tile, R, H: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr):
    """The rows of a tile, which elements there are, where it starts and where they lie from there, in 32 bits."""
    local, columns = tl.arange(0, BM), tl.arange(0, BH)
    rows = tile * BM + local
    live = (rows < R)[:, None] & (columns < H)[None, :]
    return rows, live, tl.cast(tile, tl.int64) * (BM * H), local[:, None] * H + columns[None, :]


@triton.jit
def _forward(
    x, scale, bias, y, turned, means, inverses, R, epsilon, H: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr
):
    tile = tl.program_id(0)
    columns = tl.arange(0, BH)
    rows, live, start, here = _places(tile, R, H, BM, BH)
    t = tl.load(x + start + here, mask=live, other=0.0).to(tl.float32)
    mean = tl.sum(t, 1) / H
    t = tl.where(live, t - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(t * t, 1) / H + epsilon)
    tl.store(means + rows, mean, mask=rows < R)
    tl.store(inverses + rows, inverse, mask=rows < R)
    factor = tl.load(scale + columns, mask=columns < H, other=0.0)[None, :]
    t = t * inverse[:, None] * factor + tl.load(bias + columns, mask=columns < H, other=0.0)[None, :]
    t = t.to(y.dtype.element_ty)
    tl.store(y + start + here, t, mask=live)
    if turned is not None:
        tl.store(placed_first(turned, tile, columns, R, BM), t, mask=live)


@triton.jit
def _backward(
    dy, dturned, x, scale, means, inverses, dx, sums, R,
    H: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BH)
    factor = tl.load(scale + columns, mask=columns < H, other=0.0)[None, :]
    by_scale = tl.zeros((BM, BH), tl.float32)
    by_bias = tl.zeros((BM, BH), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(R, BM), tl.num_programs(0), num_stages=STAGES):
        rows, live, start, here = _places(tile, R, H, BM, BH)
        g = tl.zeros((BM, BH), tl.float32)
        if dy is not None:
            g += tl.load(dy + start + here, mask=live, other=0.0).to(tl.float32)
        if dturned is not None:
            g += tl.load(placed_first(dturned, tile, columns, R, BM), mask=live, other=0.0).to(tl.float32)
        mean = tl.load(means + rows, mask=rows < R, other=0.0)[:, None]
        inverse = tl.load(inverses + rows, mask=rows < R, other=0.0)[:, None]
        t = (tl.load(x + start + here, mask=live, other=0.0).to(tl.float32) - mean) * inverse
        by_scale += g * t  # g is zero where nothing is
        by_bias += g
        g *= factor
        d = g - (tl.sum(g, 1) / H)[:, None] - t * (tl.sum(g * t, 1) / H)[:, None]
        tl.store(dx + start + here, (d * inverse).to(dx.dtype.element_ty), mask=live)
    at = sums + tl.program_id(0) * H + columns
    tl.store(at, tl.sum(by_scale, 0), mask=columns < H)
    tl.store(at + tl.num_programs(0) * H, tl.sum(by_bias, 0), mask=columns < H)


# --- launches ----------------------------------------------------------------------------------------------------


def forward(
    x: Tensor, scale: Tensor, bias: Tensor, epsilon: float, features_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See ptd_torch.layer_norm.layer_normalized; arguments are contiguous."""
    R, _, H = sizes(x)
    y, statistics = torch.empty_like(x), scale.new_empty((2, R))
    turned = x.new_empty((H, *x.shape[:-1])) if features_first else None
    programs, call = _launch(R, H, FORWARD)
    if R:
        _forward[(programs,)](x, scale, bias, y, turned, *statistics, R, epsilon, **call)
    return y, x.new_empty(0) if turned is None else turned, statistics


def backward(
    dy: Tensor | None, dturned: Tensor | None, x: Tensor, scale: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient by x, and those by scale and bias (2, H); arguments are contiguous."""
    R, _, H = sizes(x)
    dx = torch.empty_like(x)
    programs, call = _launch(R, H, BACKWARD)
    if not R:
        return dx, scale.new_zeros((2, H))
    sums = scale.new_empty((2, programs, H))
    _backward[(programs,)](dy, dturned, x, scale, *statistics, dx, sums, R, STAGES=BACKWARD.stages, **call)
    return dx, totals(sums)


def _launch(R: int, H: int, tile: Tile) -> tuple[int, dict[str, int]]:
    BH = triton.next_power_of_2(H)
    BM = max(1, tile.elements // BH)
    warps = max(1, min(16, BM * BH // (32 * tile.each)))
    programs = triton.cdiv(R, BM)
    return min(programs, tile.programs or programs), {"H": H, "BM": BM, "BH": BH, "num_warps": warps}
