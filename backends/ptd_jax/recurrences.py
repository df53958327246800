"""x_k = Lambda_bar x_{k-1} + drive_k with one Lambda_bar for all steps, time first: drive is (L, ...)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from ptd.arrays import Array


def loop(Lambda_bar: Array, drive: Array, state: Array, reverse: bool = False) -> Array:
    """All states, one after the other; with reverse from the last to the first."""

    def body(x: Array, drive_k: Array) -> tuple[Array, Array]:
        x = Lambda_bar * x + drive_k
        return x, x

    return lax.scan(body, state, drive, reverse=reverse)[1]


def tree(Lambda_bar: Array, drive: Array, state: Array) -> Array:
    """All states in 2 log2(L) passes, each over half the samples of the one before.

    Odd samples obey the recurrence of pairs, x_{2i+1} = Lambda_bar^2 x_{2i-1} + (Lambda_bar d_{2i} + d_{2i+1}), and
    give the even ones. With one coefficient per level this moves half of what lax.associative_scan does, which
    carries a coefficient per sample.
    """
    if drive.shape[0] == 1:
        return (Lambda_bar * state + drive[0])[None]
    even, odd = drive[0::2], drive[1::2]
    pairs = tree(Lambda_bar * Lambda_bar, Lambda_bar * even[: len(odd)] + odd, state)
    before = jnp.concatenate([jnp.broadcast_to(state, pairs[:1].shape), pairs])[: len(even)]
    singles = Lambda_bar * before + even
    whole = jnp.stack([singles[: len(pairs)], pairs], axis=1).reshape(2 * len(pairs), *drive.shape[1:])
    return whole if len(singles) == len(pairs) else jnp.concatenate([whole, singles[-1:]])
