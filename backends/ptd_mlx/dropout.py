"""Dropout, from a key or from mx.random's state."""

from __future__ import annotations

import mlx.core as mx

from ptd.arrays import Array


def dropped(x: Array, rate: float, over_time: bool, key: Array | None = None) -> Array:
    """ptd.model.Training.dropout; without a key from mx.random.state, which mx.compile has to be told of."""
    shape = (*x.shape[:-2], 1, x.shape[-1]) if over_time else x.shape
    return mx.where(mx.random.bernoulli(1 - rate, shape, key), x / (1 - rate), 0.0)
