"""Dropout by counting: a mask is a hash of a key and of positions, drawn again wherever it is needed.

So the gradient stores no mask, and the pass that multiplies by it draws it, in a few integer operations a number;
threefry takes tens of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ptd.arrays import Array

from . import placement


def dropout(key: Array) -> Callable[[Array, float, bool], Array]:
    """ptd.model.Training.dropout of one pass of a model.

    Args:
        key: uint32 scalar, of step_key.
    """
    calls = itertools.count(1)
    return lambda x, rate, over_time: dropped(x, call_key(key, next(calls)), rate, over_time)


def dropped(x: Array, key: Array, rate: float, over_time: bool) -> Array:
    """x (..., L, H) under the mask of a key, or, over time, of one mask per sequence and feature; linear in x."""
    shape = (*x.shape[:-2], 1, x.shape[-1]) if over_time else x.shape
    position = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    # Several devices draw the masks of one, each those of its rows.
    first = jnp.uint32(placement.before(position.size))
    kept = mixed(position + (first + key)) >= jnp.uint32(int(rate * 2**32))
    # A mask over time is small: drawn before the pass that multiplies by it, not by each of its numbers.
    kept = lax.optimization_barrier(kept) if over_time else kept
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def call_key(key: Array, call: int) -> Array:
    """The key of the call of that number, from a pass's key."""
    return mixed(key + jnp.uint32(call * 0x9E3779B1 & 0xFFFFFFFF))


def mixed(x: Array) -> Array:
    """32 well-mixed bits of each uint32: rounds of multiply and fold, each a bijection of 32 bits."""
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = (x ^ (x >> 16)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def step_key(key: Array, step: Array) -> Array:
    """The key of a training step from a run's key, jax.random's."""
    return jax.random.bits(jax.random.fold_in(key, step))
