"""The masks of ptd_torch.dropout as a Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def hashed(x):
    """ptd_torch.dropout.mixed of uint32."""
    x = (x ^ (x >> 16)) * tl.full((), 0x85EBCA6B, tl.uint32)
    x = (x ^ (x >> 16)) * tl.full((), 0xC2B2AE35, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _kept(key, found, count, threshold, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = hashed(place.to(tl.uint32) + tl.load(key).to(tl.uint32))
    tl.store(found + place, bits >= threshold.to(tl.uint32), mask=place < count)


def kept(key: Tensor, shape: list[int], threshold: int) -> Tensor:
    """Bool of shape: where the hash of position + key, unsigned, reaches threshold."""
    found = torch.empty(shape, dtype=torch.bool, device=key.device)
    _kept[(triton.cdiv(found.numel(), 1024),)](key, found, found.numel(), threshold, BLOCK=1024, num_warps=4)
    return found
