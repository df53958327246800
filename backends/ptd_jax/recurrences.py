"""x_k = Lambda_bar x_{k-1} + drive_k with one Lambda_bar for all steps, time first.

States and drive are real planes (L, ..., 2, M) of real and imaginary parts: matrix products need no conversion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ptd.arrays import Array, as_planes


def loop(Lambda_bar: Array, drive: Array, state: Array, reverse: bool = False) -> Array:
    """All states, one after the other; with reverse from the last to the first.

    Args:
        Lambda_bar: complex, broadcastable to (..., M).
        drive: real (L, ..., 2, M).
        state: real (..., 2, M), what comes before the first step.
        reverse: whether the last step is the first.
    """
    return _states(_loop, Lambda_bar, drive, state, reverse)


def tree(Lambda_bar: Array, drive: Array, state: Array, reverse: bool = False) -> Array:
    """All states in 2 log2(L) passes, each over half the samples of the one before; arguments as for loop."""
    return _states(_tree, Lambda_bar, drive, state, reverse)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 4))
def _states(run: Callable, Lambda_bar: Array, drive: Array, state: Array, reverse: bool) -> Array:
    return as_planes(run(Lambda_bar, _complex(drive), _complex(state), reverse))


@_states.defjvp
def _states_jvp(run: Callable, reverse: bool, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """dx_k = Lambda_bar dx_{k-1} + (dLambda_bar x_{k-1} + ddrive_k): the same recurrence, linear in what is added.

    So its transpose is one recurrence and one sum and needs the states alone, where differentiating what run does would
    keep its intermediate results and sum inside it.
    """
    Lambda_bar, drive, state = primals
    d_Lambda_bar, d_drive, d_state = tangents
    x = _states(run, Lambda_bar, drive, state, reverse)
    before = [x[1:], state[None]] if reverse else [state[None], x[:-1]]
    moved = as_planes(d_Lambda_bar * _complex(jnp.concatenate(before)))
    return x, _states(run, Lambda_bar, moved + d_drive, d_state, reverse)


def _loop(Lambda_bar: Array, drive: Array, state: Array, reverse: bool) -> Array:
    def body(x: Array, drive_k: Array) -> tuple[Array, Array]:
        x = Lambda_bar * x + drive_k
        return x, x

    return lax.scan(body, state, drive, reverse=reverse)[1]


def _tree(Lambda_bar: Array, drive: Array, state: Array, reverse: bool) -> Array:
    """Odd samples obey the recurrence of pairs, x_{2i+1} = Lambda_bar^2 x_{2i-1} + (Lambda_bar d_{2i} + d_{2i+1}).

    With one coefficient per level this moves half of what lax.associative_scan does, which carries one per sample.
    """
    if reverse:
        return jnp.flip(_tree(Lambda_bar, jnp.flip(drive, 0), state, False), 0)
    if drive.shape[0] == 1:
        return (Lambda_bar * state + drive[0])[None]
    even, odd = drive[0::2], drive[1::2]
    pairs = _tree(Lambda_bar * Lambda_bar, Lambda_bar * even[: len(odd)] + odd, state, False)
    before = jnp.concatenate([state[None], pairs])[: len(even)]
    singles = Lambda_bar * before + even
    whole = jnp.stack([singles[: len(pairs)], pairs], axis=1).reshape(2 * len(pairs), *drive.shape[1:])
    return whole if len(singles) == len(pairs) else jnp.concatenate([whole, singles[-1:]])


def _complex(planes: Array) -> Array:
    return lax.complex(planes[..., 0, :], planes[..., 1, :])
