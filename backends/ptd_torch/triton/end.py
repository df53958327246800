"""The end of a block and its gradient, each as one Triton kernel of two phases.

    g = drop(gelu(y)),  z = g W^T,  out = x + drop(keep sigmoid(z + b))

where full_glu's keep is a product as well, g V^T + a; its columns come before those of the gate in z, bias and weight.

A program owns some rows at their whole width. First it writes what its product multiplies (g, or dz of the gradient);
then it multiplies that, read again from the cache, and does what stands beside the product in its epilogue. So factors
of products lie in memory, each along the inner dimension, and yet most of what is read again comes out of the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .columns import combined, moment_parts, placed_first, sizes, totals, valid_rows
from .gate import dropped, masks, sigmoid, thresholds
from .products import accumulated, accumulated_both, precision


class Tile(NamedTuple):
    """How one kernel is cut.

    Attributes:
        rows: of a program; few, so that those of all programs at a time fit the cache.
        outputs: of a tile of its product; where H is no multiple of them, half of them.
        inner: elements a step of the product, rows of 128 bytes.
        features: of a tile of the first phase.
        warps, stages: of a program.
        registers: of a thread, few enough that two programs share a multiprocessor: one multiplies while the other
            reads and writes.
    """

    rows: int
    outputs: int
    inner: int
    features: int
    warps: int
    stages: int
    registers: int | None


#: The tiles of both kernels by dtype; full_glu's forward kernel, which has two sums in registers, has its own: of 22 in
#: bfloat16 the fastest or near it at 128, 256 and 512 features on an H200.
FORWARD = BACKWARD = {
    torch.float32: Tile(64, 128, 32, 64, 8, 3, 128),
    torch.bfloat16: Tile(128, 128, 64, 64, 8, 3, 128),
}
FORWARD_FULL = {
    torch.float32: Tile(64, 64, 32, 64, 8, 3, 128),
    torch.bfloat16: Tile(64, 64, 64, 128, 4, 2, 128),
}
#: Tiles of the first phase at once.
STAGES = 1
#: What the gate of an activation keeps.
KEEPS = {"half_glu1": "g", "half_glu2": "y", "full_glu": "product"}
#: What is read for the last time, or written and not read here again, leaves the cache to what is.
ONCE = tl.constexpr("evict_first")
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
def _tile_of(tile, R, columns, WHOLE: tl.constexpr, H: tl.constexpr, BM: tl.constexpr):
    """The rows of a tile, where it starts, which rows there are, and where its elements lie from there.

    Small offsets from one start, and no masks if tiles are whole, leave registers to products.
    """
    local = tl.arange(0, BM)
    rows = tile * BM + local
    live = tl.full((BM, 1), 1, tl.int1) if WHOLE else (rows < R)[:, None]
    return rows, tl.cast(tile, tl.int64) * (BM * H), live, local[:, None] * H + columns[None, :]


@triton.jit
def _of_layer(y, tile, start, here, columns, R, TURNED: tl.constexpr, BM: tl.constexpr):
    """Where elements of y or its gradient lie: like all others, or with features first (ptd_torch.end)."""
    if TURNED:
        return placed_first(y, tile, columns, R, BM)
    else:
        return y + start + here


@triton.jit
def _end(
    y, x, weight, bias, first, second, lengths, g, z, out, means, squares, counts, R, L, threshold, scale,
    DROPOUT: tl.constexpr, KEEPS: tl.constexpr, MOMENTS: tl.constexpr, WHOLE: tl.constexpr, TURNED: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    for c0 in tl.range(0, H, BC, num_stages=STAGES):
        columns = c0 + tl.arange(0, BC)
        rows, start, live, here = _tile_of(tile, R, columns, WHOLE, H, BM)
        at = _of_layer(y, tile, start, here, columns, R, TURNED, BM)
        t = gelu(tl.load(at, mask=live, other=0.0).to(tl.float32))
        t = dropped(t, rows, tile * BM, columns, first, threshold, scale, H, L, DROPOUT)
        tl.store(g + start + here, t.to(g.dtype.element_ty), mask=live)
    tl.debug_barrier()  # the product reads what other threads of this program wrote
    for n0 in range(0, H, BN):
        columns = n0 + tl.arange(0, BN)
        rows, start, live, here = _tile_of(tile, R, columns, WHOLE, H, BM)
        total = tl.zeros((BM, BN), tl.float32)
        if KEEPS == "product":
            value = tl.zeros((BM, BN), tl.float32)
            local = tl.arange(0, BM)
            value, total = accumulated_both(
                g + start, weight, weight + H * H, local, columns, live, value, total, H, PRECISION, BK
            )
            _, z_start, _, there = _tile_of(tile, R, columns, WHOLE, 2 * H, BM)
            value = value.to(z.dtype.element_ty)
            kept = total.to(z.dtype.element_ty)
            tl.store(z + z_start + there, value, mask=live, eviction_policy=ONCE)
            tl.store(z + z_start + there + H, kept, mask=live, eviction_policy=ONCE)
            t = value.to(tl.float32) + tl.load(bias + columns)[None, :]
            t *= sigmoid(kept.to(tl.float32) + tl.load(bias + H + columns)[None, :])
        else:
            total = accumulated(g + start, weight, tl.arange(0, BM), columns, live, total, H, PRECISION, BK)
            kept = total.to(z.dtype.element_ty)
            tl.store(z + start + here, kept, mask=live, eviction_policy=ONCE)
            gate = sigmoid(kept.to(tl.float32) + tl.load(bias + columns)[None, :])
            keep = g + start + here
            if KEEPS == "y":
                keep = _of_layer(y, tile, start, here, columns, R, TURNED, BM)
            t = tl.load(keep, mask=live, other=0.0, eviction_policy=ONCE).to(tl.float32) * gate
        t = dropped(t, rows, tile * BM, columns, second, threshold, scale, H, L, DROPOUT)
        t += tl.load(x + start + here, mask=live, other=0.0, eviction_policy=ONCE).to(tl.float32)
        t = t.to(out.dtype.element_ty)
        tl.store(out + start + here, t, mask=live, eviction_policy=ONCE)
        if MOMENTS:  # of what was stored: the next norm reads that
            t, count = t.to(tl.float32), tl.full((), BM, tl.float32)
            if lengths is not None or not WHOLE:
                valid = valid_rows(rows, lengths, R, L)
                t = tl.where(valid[:, None], t, 0.0)
                count = tl.sum(valid.to(tl.float32), 0)
            mean = tl.sum(t, 0) / tl.maximum(count, 1.0)
            apart = t - mean[None, :]
            if lengths is not None or not WHOLE:
                apart = tl.where(valid[:, None], apart, 0.0)
            tl.store(means + tile * H + columns, mean)
            tl.store(squares + tile * H + columns, tl.sum(apart * apart, 0))
            if n0 == 0:
                tl.store(counts + tile, count)


@triton.jit
def _end_gradient(
    dout, y, z, transposed, bias, first, second, dz, dy, sums, R, L, threshold, scale,
    DROPOUT: tl.constexpr, KEEPS: tl.constexpr, WHOLE: tl.constexpr, TURNED: tl.constexpr, PRECISION: tl.constexpr,
    H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """First dz, its sums over rows, and the gradient of keep, in the room of dy; then dy = gelu'(y) drop(dz W), to
    which the gradient of keep is added before or after gelu' and drop, as keep is g or y; a product's is part of dz."""
    tile = tl.program_id(0)
    width: tl.constexpr = 2 * H if KEEPS == "product" else H
    for c0 in tl.range(0, H, BC, num_stages=STAGES):
        columns = c0 + tl.arange(0, BC)
        rows, start, live, here = _tile_of(tile, R, columns, WHOLE, H, BM)
        _, z_start, _, there = _tile_of(tile, R, columns, WHOLE, width, BM)
        gate = z_start + there + (width - H)
        d = tl.load(dout + start + here, mask=live, other=0.0, eviction_policy=ONCE).to(tl.float32)
        s = tl.load(z + gate, mask=live, other=0.0, eviction_policy=ONCE).to(tl.float32)
        s = sigmoid(s + tl.load(bias + (width - H) + columns)[None, :])
        d = dropped(d, rows, tile * BM, columns, second, threshold, scale, H, L, DROPOUT) * s
        if KEEPS == "product":
            k = tl.load(z + z_start + there, mask=live, other=0.0, eviction_policy=ONCE).to(tl.float32)
            k += tl.load(bias + columns)[None, :]
            tl.store(dz + z_start + there, d.to(dz.dtype.element_ty), mask=live)
            tl.store(sums + tile * width + columns, tl.sum(d, 0))
        else:
            at = _of_layer(y, tile, start, here, columns, R, TURNED, BM)
            k = tl.load(at, mask=live, other=0.0).to(tl.float32)
            tl.store(_of_layer(dy, tile, start, here, columns, R, TURNED, BM), d.to(dy.dtype.element_ty), mask=live)
            if KEEPS == "g":
                k = dropped(gelu(k), rows, tile * BM, columns, first, threshold, scale, H, L, DROPOUT)
                k = k.to(y.dtype.element_ty).to(tl.float32)  # g as it was stored
        d *= k * (1.0 - s)
        tl.store(dz + gate, d.to(dz.dtype.element_ty), mask=live)
        tl.store(sums + tile * width + (width - H) + columns, tl.sum(d, 0))
    tl.debug_barrier()  # the product reads what other threads of this program wrote
    for n0 in range(0, H, BN):
        columns = n0 + tl.arange(0, BN)
        rows, start, live, here = _tile_of(tile, R, columns, WHOLE, H, BM)
        d = tl.zeros((BM, BN), tl.float32)
        own = dz + tl.cast(tile, tl.int64) * (BM * width)
        d = accumulated(own, transposed, tl.arange(0, BM), columns, live, d, width, PRECISION, BK)
        d = d.to(dy.dtype.element_ty)
        into = _of_layer(dy, tile, start, here, columns, R, TURNED, BM)
        # Stores nothing, but for it the compiler (3.6) keeps the product's layout and moves all that follows into it.
        tl.store(into, d, mask=live & (rows < 0)[:, None])
        d = d.to(tl.float32)
        if KEEPS != "product":
            # Of the same pointers as the store below, so that each thread has read what it overwrites.
            beside = tl.load(into, mask=live, other=0.0, eviction_policy=ONCE).to(tl.float32)
        if KEEPS == "g":
            d += beside
        d = dropped(d, rows, tile * BM, columns, first, threshold, scale, H, L, DROPOUT)
        at = _of_layer(y, tile, start, here, columns, R, TURNED, BM)
        d *= gelu_slope(tl.load(at, mask=live, other=0.0, eviction_policy=ONCE).to(tl.float32))
        if KEEPS == "y":
            d += beside
        tl.store(into, d.to(dy.dtype.element_ty), mask=live, eviction_policy=ONCE)


# --- launches ----------------------------------------------------------------------------------------------------


def forward(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, first: Tensor | None, second: Tensor | None,
    lengths: Tensor | None, rate: float, tied: bool, activation: str, moments: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See ptd_torch.end.block_end; its arguments are contiguous, y with features first or last."""
    R, L, H = sizes(y)
    g, z, out = y.new_empty(y.shape), y.new_empty((*y.shape[:-1], len(bias))), y.new_empty(y.shape)
    tile = (FORWARD_FULL if activation == "full_glu" else FORWARD)[y.dtype]
    tiles, call = _launch(y, first, rate, tied, activation, tile)
    parts = moment_parts(y, tiles)
    _end[(tiles,)](
        y, x, weight, bias, first, second, lengths, g, z, out, *parts, R, L, *thresholds(rate),
        MOMENTS=moments, **call,
    )  # fmt: skip
    return out, combined(*parts) if moments else bias.new_empty((2, H)), g, z


def backward(
    dout: Tensor, y: Tensor, z: Tensor, transposed: Tensor, bias: Tensor, first: Tensor | None, second: Tensor | None,
    rate: float, tied: bool, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients by y, laid out like y, by z and by bias, from weight^T; arguments as those of forward."""
    R, L, _ = sizes(y)
    dz, dy = y.new_empty(z.shape), torch.empty_like(y)
    tiles, call = _launch(y, first, rate, tied, activation, BACKWARD[y.dtype])
    sums = bias.new_empty((1, tiles, len(bias)))
    _end_gradient[(tiles,)](
        dout, y, z, transposed, bias, first, second, dz, dy, sums, R, L, *thresholds(rate), **call
    )  # fmt: skip
    return dy, dz, totals(sums)[0]


def _launch(
    y: Tensor, key: Tensor | None, rate: float, tied: bool, activation: str, tile: Tile
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Programs, and what a kernel is compiled for."""
    R, L, H = sizes(y)
    BM = tile.rows
    BN = max(b for b in (64, 128) if b <= tile.outputs and H % b == 0)
    call = {
        "DROPOUT": masks(key, tied, L, BM), "KEEPS": KEEPS[activation], "WHOLE": R % BM == 0,
        "TURNED": not y.is_contiguous(), "PRECISION": precision(), "H": H, "BM": BM, "BN": BN, "BK": tile.inner,
        "BC": max(b for b in (32, 64, 128) if b <= tile.features and H % b == 0), "STAGES": STAGES,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    # Three TF32 products in place of one take more registers.
    wide = y.dtype == torch.float32 and precision() != "tf32"
    return triton.cdiv(R, BM), call if wide else call | {"maxnreg": tile.registers}
