"""The gated end of a block as Triton kernels, and their launches. Imported only where Triton is.

    g = drop(gelu(y)),  z = g W^T + b,  out = x + drop(keep sigmoid(z)),  keep = y or g

Forward reads y and x once and writes out once, and the moments of out come with it. Backward reads y and the gradient
of out and writes those of y and z; a second kernel makes the weights' gradient from dz and y. Narrow layers compute z
again, wide ones keep it: there the product costs more than two passes.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Triton's interpreter multiplies the bits of bfloat16 numbers as if they were integers (3.9): there products widen.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

#: The widest H whose z is computed again.
NARROW = 128


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """Total + a b."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _gelu(x):
    """ptd.model.gelu, and its derivative: x s with s = sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))."""
    square = x * x
    s = _sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * square))
    return x * s, s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * square)


@triton.jit
def _dropped(x, rows, columns, keys, call: tl.constexpr, threshold, scale, H, L, DROPOUT: tl.constexpr):
    """x with the mask of ptd_torch.dropout; DROPOUT is 0 for none, 1 for one per element, 2 for one tied over time."""
    if DROPOUT == 0:
        return x
    else:
        place = (rows // L) if DROPOUT == 2 else rows
        index = place[:, None] * H + columns[None, :]
        bits = index.to(tl.uint32) + tl.load(keys + call).to(tl.uint32)
        bits = (bits ^ (bits >> 16)) * tl.full((), 0x85EBCA6B, tl.uint32)
        bits = (bits ^ (bits >> 16)) * tl.full((), 0xC2B2AE35, tl.uint32)
        bits = bits ^ (bits >> 16)
        return tl.where(bits >= threshold.to(tl.uint32), x * scale, 0.0)


@triton.jit
def _gate(
    y, weight, bias, keys, rows, columns, live, base, L, threshold, scale,
    H: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """z of BM rows and BN features."""
    z = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, H, BK):
        k = k0 + tl.arange(0, BK)
        g, _ = _gelu(tl.load(y + base + k[None, :], mask=live, other=0.0).to(tl.float32))
        g = _dropped(g, rows, k, keys, 0, threshold, scale, H, L, DROPOUT)
        w = tl.load(weight + columns[None, :] * H + k[:, None])
        z = dot(g.to(w.dtype), w, z, PRECISION)
    return z + tl.load(bias + columns)[None, :]


@triton.jit
def _forward(
    y, x, weight, bias, keys, lengths, out, z_kept, means, squares, R, L, threshold, scale,
    H: tl.constexpr, DROPOUT: tl.constexpr, KEEP_Y: tl.constexpr, MOMENTS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BM rows of BN output features."""
    tiles: tl.constexpr = H // BN
    m = tl.program_id(0) // tiles
    rows = m * BM + tl.arange(0, BM)
    columns = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    live = (rows < R)[:, None]
    base = rows.to(tl.int64)[:, None] * H
    z = _gate(
        y, weight, bias, keys, rows, columns, live, base, L, threshold, scale, H, DROPOUT, PRECISION, BM, BN, BK
    )  # fmt: skip
    here = base + columns[None, :]
    if z_kept is not None:
        tl.store(z_kept + here, z.to(z_kept.dtype.element_ty), mask=live)
    keep = tl.load(y + here, mask=live, other=0.0).to(tl.float32)
    if not KEEP_Y:
        keep, _ = _gelu(keep)
        keep = _dropped(keep, rows, columns, keys, 0, threshold, scale, H, L, DROPOUT)
    t = _dropped(keep * _sigmoid(z), rows, columns, keys, 1, threshold, scale, H, L, DROPOUT)
    t += tl.load(x + here, mask=live, other=0.0).to(tl.float32)
    t = t.to(out.dtype.element_ty)
    tl.store(out + here, t, mask=live)
    if MOMENTS:
        # Of what was stored: the next norm reads that.
        t = t.to(tl.float32)
        valid = _valid(rows, lengths, R, L)
        count = tl.maximum(tl.sum(valid.to(tl.float32), 0), 1.0)
        mean = tl.sum(tl.where(valid[:, None], t, 0.0), 0) / count
        apart = tl.where(valid[:, None], t - mean[None, :], 0.0)
        tl.store(means + m * H + columns, mean)
        tl.store(squares + m * H + columns, tl.sum(apart * apart, 0))


@triton.jit
def _valid(rows, lengths, R, L):
    """Which rows count."""
    valid = rows < R
    if lengths is not None:
        valid = valid & (rows % L < tl.load(lengths + rows // L, mask=valid, other=0))
    return valid


@triton.jit
def _combine(
    means, squares, lengths, mean, var, tiles, R, L,
    H: tl.constexpr, BM: tl.constexpr, TILES: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Mean and variance from those of tiles: M2 = sum M2_i + n_i (mean_i - mean)^2 (Chan et al. 1979), in two looks.

    The tiles' means are few: a second look at them costs nothing, and nothing cancels.
    """
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    ones = tl.zeros((TILES,), tl.float32)
    total = tl.zeros((TILES, BN), tl.float32)
    for t0 in range(0, tiles, TILES):
        t = t0 + tl.arange(0, TILES)
        n = _count(t, tiles, lengths, R, L, BM)
        ones += n
        total += n[:, None] * tl.load(means + t[:, None] * H + columns[None, :], mask=(t < tiles)[:, None], other=0.0)
    count = tl.maximum(tl.sum(ones, 0), 1.0)
    whole = tl.sum(total, 0) / count
    total = tl.zeros((TILES, BN), tl.float32)
    for t0 in range(0, tiles, TILES):
        t = t0 + tl.arange(0, TILES)
        n = _count(t, tiles, lengths, R, L, BM)
        here = t[:, None] * H + columns[None, :]
        apart = tl.load(means + here, mask=(t < tiles)[:, None], other=0.0) - whole[None, :]
        total += n[:, None] * apart * apart + tl.load(squares + here, mask=(t < tiles)[:, None], other=0.0)
    tl.store(mean + columns, whole)
    tl.store(var + columns, tl.sum(total, 0) / count)


@triton.jit
def _count(tile, tiles, lengths, R, L, BM: tl.constexpr):
    """How many rows of each tile count; a tile may reach over several sequences."""
    if lengths is None:
        n = tl.minimum(R - tile * BM, BM)
    else:
        n = tile * 0
        first = tile * BM
        for s in range(0, (BM + L - 2) // L + 1):
            b = first // L + s
            end = tl.load(lengths + b, mask=b * L < R, other=0).to(tl.int32) + b * L
            n += tl.maximum(tl.minimum(end, first + BM) - tl.maximum(first, b * L), 0)
    return tl.where(tile < tiles, n, 0).to(tl.float32)


@triton.jit
def _backward(
    y, dout, z_kept, weight, transposed, bias, keys, dy, dz_out, R, L, threshold, scale,
    H: tl.constexpr, DROPOUT: tl.constexpr, KEEP_Y: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BM rows of dz and dy, all features. One half leaves the other dz, and in dy the gradient of keep, in caches."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = (rows < R)[:, None]
    base = rows.to(tl.int64)[:, None] * H
    for n0 in range(0, H, BN):
        columns = n0 + tl.arange(0, BN)
        here = base + columns[None, :]
        if z_kept is None:
            z = _gate(
                y, weight, bias, keys, rows, columns, live, base, L, threshold, scale, H, DROPOUT, PRECISION, BM, BN, BK
            )  # fmt: skip
        else:
            z = tl.load(z_kept + here, mask=live, other=0.0).to(tl.float32)
        s = _sigmoid(z)
        keep = tl.load(y + here, mask=live, other=0.0).to(tl.float32)
        if not KEEP_Y:
            keep, _ = _gelu(keep)
            keep = _dropped(keep, rows, columns, keys, 0, threshold, scale, H, L, DROPOUT)
        dt = tl.load(dout + here, mask=live, other=0.0).to(tl.float32)
        dt = _dropped(dt, rows, columns, keys, 1, threshold, scale, H, L, DROPOUT) * s
        dz = dt * keep * (1.0 - s)
        tl.store(dz_out + here, dz.to(dz_out.dtype.element_ty), mask=live)
        tl.store(dy + here, dt.to(dy.dtype.element_ty), mask=live)
    tl.debug_barrier()
    for n0 in range(0, H, BN):
        columns = n0 + tl.arange(0, BN)
        here = base + columns[None, :]
        dg = tl.zeros((BM, BN), tl.float32)
        for k0 in range(0, H, BK):
            k = k0 + tl.arange(0, BK)
            part = tl.load(dz_out + base + k[None, :], mask=live, other=0.0)
            dg = dot(part, tl.load(transposed + columns[None, :] * H + k[:, None]), dg, PRECISION)
        dt = tl.load(dy + here, mask=live, other=0.0).to(tl.float32)
        if not KEEP_Y:
            dg += dt
        _, slope = _gelu(tl.load(y + here, mask=live, other=0.0).to(tl.float32))
        found = _dropped(dg, rows, columns, keys, 0, threshold, scale, H, L, DROPOUT) * slope
        if KEEP_Y:
            found += dt
        tl.store(dy + here, found.to(dy.dtype.element_ty), mask=live)


@triton.jit
def _weight_gradient(
    y, dz, keys, sums, R, L, threshold, scale,
    H: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """dz^T g and the sum of dz over every so-manieth tile of BR rows, g from y: one of the sums to be added up."""
    out = tl.program_id(1) * BM + tl.arange(0, BM)
    into = tl.program_id(2) * BN + tl.arange(0, BN)
    weight = tl.zeros((BM, BN), tl.float32)
    bias = tl.zeros((BM,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(R, BR), tl.num_programs(0)):
        rows = tile * BR + tl.arange(0, BR)
        live = (rows < R)[:, None]
        base = rows.to(tl.int64)[:, None] * H
        g, _ = _gelu(tl.load(y + base + into[None, :], mask=live, other=0.0).to(tl.float32))
        g = _dropped(g, rows, into, keys, 0, threshold, scale, H, L, DROPOUT)
        d = tl.load(dz + base + out[None, :], mask=live, other=0.0)
        weight = dot(tl.trans(d), g.to(d.dtype), weight, PRECISION)
        bias += tl.sum(d.to(tl.float32), 0)
    sums += tl.program_id(0) * (H * H + H)
    tl.store(sums + out[:, None] * H + into[None, :], weight)
    if tl.program_id(2) == 0:
        tl.store(sums + H * H + out, bias)


# --- launches ----------------------------------------------------------------------------------------------------

#: Rows and features of a tile, features a step of the product, warps, stages; by the bytes of a number. None spills.
FORWARD = {4: (64, 64, 32, 4, 3), 2: (64, 128, 64, 4, 3)}
BACKWARD = {4: (64, 128, 32, 8, 3), 2: (64, 128, 32, 8, 3)}
#: Rows a step, features by features of a tile, warps, stages; programs in all.
WEIGHT = {4: (32, 128, 128, 8, 3), 2: (64, 128, 128, 8, 3)}
PROGRAMS = 264
#: Tiles by features that _combine looks at in one step.
COMBINED = (256, 8)


def forward(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None, lengths: Tensor | None, **how: float | bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """out, z where backward is to read it, and mean and variance (2, H) of out; see ptd_torch.gate.gated_sum."""
    H, L, R = y.shape[-1], y.shape[-2], y.numel() // y.shape[-1]
    BM, BN, BK, warps, stages = _fitting(FORWARD[y.element_size()], H)
    tiles = triton.cdiv(R, BM)
    out = torch.empty_like(y)
    z = torch.empty_like(y) if H > NARROW else None
    parts = bias.new_empty((2, tiles, H))
    _forward[(tiles * (H // BN),)](
        y, x, weight.to(y.dtype), bias, keys, lengths, out, z, parts[0], parts[1], R, L, *_thresholds(how),
        H=H, DROPOUT=_masks(keys, how), KEEP_Y=how["keep_y"], MOMENTS=how["moments"], PRECISION=precision(),
        BM=BM, BN=BN, BK=BK, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    moments = bias.new_empty((2, H))
    if how["moments"]:
        rows, columns = COMBINED
        _combine[(H // columns,)](
            parts[0], parts[1], lengths, moments[0], moments[1], tiles, R, L, H=H, BM=BM, TILES=rows, BN=columns
        )
    return out, z, moments


def backward(
    y: Tensor, dout: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, keys: Tensor | None, **how: float | bool
) -> tuple[Tensor, Tensor]:
    """The gradients by y, and by weight with bias as a last row."""
    H, L, R = y.shape[-1], y.shape[-2], y.numel() // y.shape[-1]
    weight = weight.to(y.dtype)
    BM, BN, BK, warps, stages = _fitting(BACKWARD[y.element_size()], H)
    dy, dz = torch.empty_like(y), torch.empty_like(y)
    same = {"H": H, "DROPOUT": _masks(keys, how), "PRECISION": precision()}
    _backward[(triton.cdiv(R, BM),)](
        y, dout, z, weight, weight.t().contiguous(), bias, keys, dy, dz, R, L, *_thresholds(how),
        KEEP_Y=how["keep_y"], BM=BM, BN=BN, BK=BK, num_warps=warps, num_stages=stages, **same,
    )  # fmt: skip
    BR, BM, BN, warps, stages = WEIGHT[y.element_size()]
    BM, BN = (max(b for b in (32, 64, 128) if b <= most and H % b == 0) for most in (BM, BN))
    tiles = (H // BM, H // BN)
    splits = max(1, min(PROGRAMS // (tiles[0] * tiles[1]), triton.cdiv(R, BR)))
    sums = bias.new_empty((splits, H + 1, H))
    _weight_gradient[(splits, *tiles)](
        y, dz, keys, sums, R, L, *_thresholds(how), BR=BR, BM=BM, BN=BN, num_warps=warps, num_stages=stages, **same
    )
    return dy, sums.sum(0)


def _fitting(config: tuple[int, ...], H: int) -> tuple[int, ...]:
    """config with the widest tile of features that divides H."""
    BM, BN, BK, warps, stages = config
    return BM, max(b for b in (32, 64, 128, 256) if b <= BN and H % b == 0), BK, warps, stages


def _masks(keys: Tensor | None, how: dict[str, float | bool]) -> int:
    return 0 if keys is None else 2 if how["tied"] else 1


def _thresholds(how: dict[str, float | bool]) -> tuple[int, float]:
    """From where on a hash of 32 bits keeps its element, and what the kept are multiplied by."""
    return int(how["rate"] * 2**32), 1 / (1 - how["rate"])


def precision() -> str:
    """TF32 where the caller allows fast products; else three of them, which round like float32."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
