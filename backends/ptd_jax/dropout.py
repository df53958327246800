"""Dropout whose masks are a function of key, call and position alone: any part of an array finds its part of the mask.

So a kernel that holds a tile draws the mask again where the gradient needs it, and nothing of it is stored. Counting
costs a few integer operations a sample, in the pass that uses them; threefry costs tens of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ptd.arrays import Array


def dropout(key: Array) -> Callable[[Array, float, bool], Array]:
    """ptd.model.Training.dropout of one pass.

    Args:
        key: uint32 scalar, well mixed.
    """
    calls = itertools.count(1)

    def drop(x: Array, rate: float, over_time: bool) -> Array:
        shape = (*x.shape[:-2], 1, x.shape[-1]) if over_time else x.shape
        return dropped(x, call_key(key, next(calls)), lax.iota(jnp.uint32, math.prod(shape)).reshape(shape), rate)

    return drop


def call_key(key: Array, call: int) -> Array:
    """The key of the dropout call of that number, from 1, in a pass."""
    return mixed(key + jnp.uint32(call * 0x9E3779B1 & 0xFFFFFFFF))


def block_key(key: Array, i: Array) -> Array:
    """The key of block i in a pass."""
    return mixed(key + (lax.convert_element_type(i, jnp.uint32) + 1) * jnp.uint32(0x27D4EB2F))


def dropped(x: Array, key: Array, position: Array, rate: float) -> Array:
    """x / (1 - rate), zero at the share rate of positions."""
    kept = mixed(position + key) >= jnp.uint32(int(rate * 2**32))
    return jnp.where(kept, x * (1 / (1 - rate)), jnp.zeros_like(x))


def mixed(x: Array) -> Array:
    """32 well-mixed bits of each uint32: rounds of multiply and fold, each a bijection of 32 bits."""
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = (x ^ (x >> 16)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def step_key(key: Array, step: Array) -> Array:
    """The key of a training step from a run's key, jax.random's."""
    return jax.random.bits(jax.random.fold_in(key, step))
