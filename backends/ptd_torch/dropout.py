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
        bits = mixed(torch.arange(math.prod(shape), device=x.device).view(shape) + self.key())
        return torch.where(bits >= int(rate * 2**32), x / (1 - rate), 0.0)

    def key(self) -> Tensor:
        """The key of the next call: an element is kept where mixed(position + key) reaches rate 2^32."""
        self._calls += 1
        return mixed(self._key + self._calls * 0x9E3779B1)


def mixed(x: Tensor) -> Tensor:
    """32 well-mixed bits of each integer: two rounds of multiply and fold, each a bijection of 32 bits."""
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
