"""Signals turned from and to features first, as Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _to_features(
    source, target, lengths, L, H, length, T, s_r, s_t, s_h, TIME: tl.constexpr, FEATURES: tl.constexpr
):  # fmt: skip
    """source (R, L, H) as target (H, R, length), zero from L on, or from its length to the end of a chunk of T."""
    tiles = tl.cdiv(length, TIME)
    r = (tl.program_id(0) // tiles).to(tl.int64)
    t = (tl.program_id(0) % tiles) * TIME + tl.arange(0, TIME)
    h = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    stop, until = L, length
    if lengths is not None:
        stop = tl.load(lengths + r).to(tl.int32)
        until = tl.cdiv(stop, T) * T
    at = source + r * s_r + t[:, None].to(tl.int64) * s_t + h[None, :].to(tl.int64) * s_h
    v = tl.load(at, mask=(t < stop)[:, None] & (h < H)[None, :], other=0.0)
    at = target + r * length + h[:, None].to(tl.int64) * (tl.num_programs(0) // tiles) * length + t[None, :]
    tl.store(at, tl.trans(v), mask=(h < H)[:, None] & (t < until)[None, :])


@triton.jit
def _from_features(source, target, lengths, L, H, length, TIME: tl.constexpr, FEATURES: tl.constexpr):
    """source (H, R, length) as target (R, L, H), zero from its length on."""
    tiles = tl.cdiv(length, TIME)
    r = (tl.program_id(0) // tiles).to(tl.int64)
    t = (tl.program_id(0) % tiles) * TIME + tl.arange(0, TIME)
    h = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    at = source + r * length + h[:, None].to(tl.int64) * (tl.num_programs(0) // tiles) * length + t[None, :]
    stop = L if lengths is None else tl.load(lengths + r).to(tl.int32)
    v = tl.load(at, mask=(h < H)[:, None] & (t < stop)[None, :], other=0.0)
    at = target + r * L * H + t[:, None].to(tl.int64) * H + h[None, :]
    tl.store(at, tl.trans(v), mask=(t < L)[:, None] & (h < H)[None, :])


#: Tile of the two turns, and their warps.
TURN, TURN_WARPS = (64, 32), 4


def to_features(u: Tensor, length: int, lengths: Tensor | None, T: int) -> Tensor:
    """u (R, L, H), any strides, as (H, R, length), zero from L or its length on; not set in chunks beyond that."""
    R, L, H = u.shape
    target = u.new_empty((H, R, length))
    grid = (R * triton.cdiv(length, TURN[0]), triton.cdiv(H, TURN[1]))
    if target.numel():
        _to_features[grid](
            u, target, lengths, L, H, length, T, *u.stride(), TIME=TURN[0], FEATURES=TURN[1], num_warps=TURN_WARPS
        )
    return target


def from_features(y: Tensor, L: int, lengths: Tensor | None) -> Tensor:
    """y (H, R, length) as (R, L, H), zero from its length on."""
    H, R, length = y.shape
    target = y.new_empty((R, L, H))
    grid = (R * triton.cdiv(length, TURN[0]), triton.cdiv(H, TURN[1]))
    if target.numel():
        _from_features[grid](y, target, lengths, L, H, length, TIME=TURN[0], FEATURES=TURN[1], num_warps=TURN_WARPS)
    return target
