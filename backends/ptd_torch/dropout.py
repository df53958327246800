"""Dropout whose masks are a function of a key and of positions alone: the same in eager, compiled and fused runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Dropout:
    """Dropout as ptd.model.Training takes it; each call has a mask of its own.

    Args:
        key: integer (), on the device.
    """

    def __init__(self, key: Tensor):
        self._key, self._calls = key, 0

    def __call__(self, x: Tensor, rate: float, over_time: bool) -> Tensor:
        """X with elements at 0 with probability rate, the others scaled up."""
        shape = (*x.shape[:-2], 1, x.shape[-1]) if over_time else x.shape
        places = torch.arange(math.prod(shape), device=x.device).to(torch.int32).view(shape)
        # int32 orders as uint32 does once the highest bit is flipped.
        bits = mixed(places + self.key()) ^ -(2**31)
        return torch.where(bits >= int(rate * 2**32) - 2**31, x / (1 - rate), 0.0)

    def key(self) -> Tensor:
        """The key of the next call: an element is kept where mixed(position + key), unsigned, reaches rate 2^32."""
        self._calls += 1
        return derived(self._key, self._calls * 0x9E3779B1)


def derived(key: Tensor, n: int) -> Tensor:
    """The n-th of many keys, int32, from one of any integer type."""
    return mixed(key.long() + n)


def mixed(x: Tensor) -> Tensor:
    """32 well-mixed bits of the low 32 of each integer, as int32: two rounds of multiply and fold, each a bijection.

    32 bits wide, since GPUs have no others: 64 cost as much as the pass over memory that the mask belongs to.
    """
    x = x.to(torch.int32)
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = _folded(x) * (factor - 2**32)
    return _folded(x)


def _folded(x: Tensor) -> Tensor:
    return x ^ ((x >> 16) & 0xFFFF)
