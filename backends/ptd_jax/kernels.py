"""Kernels of the jax backend: recurrences as one compiled loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ptd.arrays import Array
from ptd.kernels import Kernels
from ptd.recurrence import LowRankTransition


def scan(Lambda_bar: Array, drive: Array, state: Array | None = None, resets: Array | None = None) -> Array:
    """ptd.recurrence.scan, by the form that is faster on the platform.

    On a CPU the sequential loop: measured 1 to 3 times faster forward, 2.5 to 4 times with its gradient, and 6 to 15
    times in compile time than the associative scan (L 64 to 65536, jax 0.10). Elsewhere a loop would launch one
    kernel per step, so the associative scan.
    """
    if resets is not None:
        Lambda_bar = jnp.where(resets[..., None], jnp.zeros_like(Lambda_bar), Lambda_bar)
        state = None if state is None else jnp.where(resets[..., 0, None], jnp.zeros_like(state), state)
    return lax.platform_dependent(
        Lambda_bar,
        drive,
        jnp.zeros_like(drive[..., 0, :]) if state is None else state,
        cpu=_loop,
        default=_associative,
    )


def scan_low_rank(
    transition: LowRankTransition, drive: Array, state: Array | None = None, resets: Array | None = None
) -> Array:
    """ptd.recurrence.scan_low_rank as one sequential loop: products of its transitions do not stay low-rank."""
    per_step = transition.diagonal.ndim > 2
    parts = (transition.diagonal, transition.left, transition.right) if per_step else ()
    steps = tuple(_time_first(part, axis) for part, axis in zip(parts, (-3, -4, -4), strict=False))
    keep = None if resets is None else _time_first(~resets, -1)[..., None, None]

    def body(x: Array, at: tuple) -> tuple[Array, Array]:
        drive_k, keep_k, coefficients = at
        x = x if keep_k is None else jnp.where(keep_k, x, jnp.zeros_like(x))
        now = LowRankTransition(*coefficients, transition.conj_sym) if per_step else transition
        x = now(x) + drive_k
        return x, x

    x0 = jnp.zeros_like(drive[..., 0, :, :]) if state is None else state
    _, states = lax.scan(body, x0, (_time_first(drive, -3), keep, steps))
    return jnp.moveaxis(states, 0, -3)


def _loop(Lambda_bar: Array, drive: Array, state: Array) -> Array:
    per_step = Lambda_bar.ndim > 1

    def body(x: Array, at: tuple) -> tuple[Array, Array]:
        Lambda_bar_k, drive_k = at
        x = (Lambda_bar_k if per_step else Lambda_bar) * x + drive_k
        return x, x

    steps = _time_first(Lambda_bar, -2) if per_step else None
    _, states = lax.scan(body, state, (steps, _time_first(drive, -2)))
    return jnp.moveaxis(states, 0, -2)


def _associative(Lambda_bar: Array, drive: Array, state: Array) -> Array:
    first = Lambda_bar[..., 0, :] if Lambda_bar.ndim > 1 else Lambda_bar
    drive = drive.at[..., 0, :].add(first * state)

    def compose(left: tuple, right: tuple) -> tuple[Array, Array]:
        return right[0] * left[0], right[0] * left[1] + right[1]

    return lax.associative_scan(compose, (jnp.broadcast_to(Lambda_bar, drive.shape), drive), axis=drive.ndim - 2)[1]


def _time_first(x: Array, axis: int) -> Array:
    return jnp.moveaxis(x, axis, 0)


KERNELS = Kernels(scan=scan, scan_low_rank=scan_low_rank)

jax.tree_util.register_dataclass(LowRankTransition, data_fields=["diagonal", "left", "right"], meta_fields=["conj_sym"])
