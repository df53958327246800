"""Sums of powers with their factors made once; S4's over poles in memory that grows with the kernel alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ptd import convolution
from ptd.arrays import Array

#: Frequencies per block, at least. On a CPU the gradient for H x L of 64 x 4096 takes 54 ms with it, 72 with twice as
#: many, 61 with a quarter, 159 with all at once.
SMALLEST_BLOCK = 128


def kept(x: Array) -> Array:
    """x, computed once. XLA on a CPU computes anew in each of several loops what all of them read, sines among it, but
    not what comes out of a branch; an optimization barrier is gone before it joins loops (jax 0.10)."""
    if not x.size:
        return x
    first = x.ravel()[0].real
    return lax.cond(first == first, lambda x: x, lambda x: x - (x - x), x)


vandermonde_on_cpu = functools.partial(convolution.vandermonde, kept=kept)


def sums_over_poles(coefficients: Array, poles: Array, circle: Array, pairs: bool) -> Array:
    """ptd.convolution.sums_over_poles with the inverses of one block in memory at a time, of F/N frequencies.

    They are made again for derivatives, of which it has every kind.
    """
    N, F = poles.shape[-1], circle.shape[-1]
    size = max(SMALLEST_BLOCK, -(-F // N))
    if size >= F:
        return convolution.sums_over_poles(coefficients, poles, circle, pairs)
    count = -(-F // size)
    # The last block is filled up with its last frequency, where sums are finite if they are at all.
    padded = jnp.pad(circle, ((0, 0), (0, count * size - F)), mode="edge")

    @jax.checkpoint
    def block(circle: Array) -> Array:
        return convolution.sums_over_poles(coefficients, poles, circle, pairs)

    Y = lax.map(block, jnp.moveaxis(padded.reshape(2, count, size), 1, 0))
    return jnp.moveaxis(Y, 0, -2).reshape(*Y.shape[1:-1], count * size)[..., :F]


resolvent_sums = functools.partial(convolution.resolvent_sums, sums=sums_over_poles)
cauchy = functools.partial(convolution.cauchy, sums=resolvent_sums)
