"""Dropout whose masks are a function of a key and of positions alone: the same in eager, compiled and fused runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .scan import kernel_path


class Dropout:
    """Dropout as ptd.model.Training takes it; each call has a mask of its own.

    Args:
        key: integer (), on the device; None for a model that drops nothing and so never calls this.
        first: rows of the batch before those of x, which lie on other devices: several draw the masks of one.
    """

    def __init__(self, key: Tensor | None, first: int = 0):
        self._key, self._first, self._calls = key, first, 0

    def __call__(self, x: Tensor, rate: float, over_time: bool) -> Tensor:
        """X with elements at 0 with probability rate, the others scaled up."""
        key, shape = self.key(x.shape, over_time), _mask_shape(x.shape, over_time)
        mask = tied_mask(key, shape, rate) if over_time else _mask(key, shape, rate)
        return torch.where(mask, x / (1 - rate), 0.0)

    def key(self, shape: Sequence[int], over_time: bool) -> Tensor:
        """The key of the next call, on an x of that shape, with one mask for all time or not.

        An element is kept where mixed(position + key), unsigned, reaches rate 2^32.
        """
        self._calls += 1
        key = derived(self._key, self._calls * 0x9E3779B1)
        if not self._first:
            return key
        before = self._first * math.prod(_mask_shape(shape, over_time)[1:])
        return (key.long() + before).to(torch.int32)


def _mask_shape(shape: Sequence[int], over_time: bool) -> list[int]:
    """That of the mask for x (..., L, H)."""
    return [*shape[:-2], 1 if over_time else shape[-2], shape[-1]]


@torch.library.custom_op("ptd::tied_mask", mutates_args=())
def tied_mask(key: Tensor, shape: list[int], rate: float) -> Tensor:
    """The mask of one call, as an operator: a compiler would hash anew at each of the elements that share a number."""
    if kernel_path(key.device) == "torch":
        return _mask(key, shape, rate)
    from .triton import dropout as kernels

    return kernels.kept(key, shape, int(rate * 2**32))


@tied_mask.register_fake
def _(key: Tensor, shape: list[int], rate: float) -> Tensor:
    return key.new_empty(shape, dtype=torch.bool)


def _mask(key: Tensor, shape: Sequence[int], rate: float) -> Tensor:
    places = torch.arange(math.prod(shape), device=key.device).to(torch.int32).view(*shape)
    # int32 orders as uint32 does once the highest bit is flipped.
    return mixed(places + key) ^ -(2**31) >= int(rate * 2**32) - 2**31


def derived(key: Tensor, n: int | Tensor) -> Tensor:
    """The n-th of many keys, int32, from one of any integer type; for several n several."""
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
