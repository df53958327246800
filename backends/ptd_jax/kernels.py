"""Kernels of the jax backend: recurrences as one compiled loop, or as a tree where steps cost a launch each."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ptd.arrays import Array, as_planes, from_planes
from ptd.kernels import Kernels
from ptd.recurrence import LowRankTransition

from .recurrences import loop, tree


def scan(Lambda_bar: Array, drive: Array, state: Array | None = None, resets: Array | None = None) -> Array:
    """ptd.recurrence.scan, by the form that is faster on the platform.

    On a CPU the sequential loop: measured 1 to 3 times faster forward, 2.5 to 4 times with its gradient, and 6 to 15
    times in compile time than the associative scan (L 64 to 65536, jax 0.10). Elsewhere a loop would launch one
    kernel per step, so a tree.
    """
    if resets is not None:
        Lambda_bar = jnp.where(resets[..., None], jnp.zeros_like(Lambda_bar), Lambda_bar)
        state = None if state is None else jnp.where(resets[..., 0, None], jnp.zeros_like(state), state)
    state = jnp.zeros_like(drive[..., 0, :]) if state is None else jnp.broadcast_to(state, drive[..., 0, :].shape)
    if Lambda_bar.ndim > 1:
        return lax.platform_dependent(Lambda_bar, drive, state, cpu=_loop_per_step, default=associative_scan)
    planes = jnp.moveaxis(as_planes(drive), -3, 0)
    x = lax.platform_dependent(Lambda_bar, planes, as_planes(state), cpu=loop, default=tree)
    return from_planes(jnp.moveaxis(x, 0, -3))


def carries(
    Lambda_bar: Array, drive: Array, state: Array | None = None, *, scan: Callable[..., Array] | None = None
) -> tuple[Array, Array]:
    """ptd.chunks.carries with both directions in one recurrence; scan is not used."""
    D, dtype = drive.shape[-3], Lambda_bar.real.dtype
    # Time first, the direction from right to left turned round: (n, ..., D, 2, M).
    d = jnp.moveaxis(_aligned(drive, D), -4, 0).astype(dtype)
    if Lambda_bar.ndim > 1:
        H, M = Lambda_bar.shape
        Lambda_bar = Lambda_bar.reshape(H, *(1,) * (d.ndim - 4), M)
    x0 = jnp.zeros_like(d[0]) if state is None else jnp.zeros_like(d[0]).at[..., 0, :, :].set(state)
    planes = lax.platform_dependent(Lambda_bar, d, x0, cpu=loop, default=tree)
    entering = jnp.moveaxis(jnp.concatenate([x0[None], planes[:-1]]), 0, -4)
    return _aligned(entering, D).astype(drive.dtype), planes[-1]


def _aligned(planes: Array, D: int) -> Array:
    """Planes (..., n, D, 2, M) with direction 1 reversed in time: its own inverse."""
    if D == 1:
        return planes
    return jnp.stack([planes[..., 0, :, :], jnp.flip(planes[..., 1, :, :], axis=-3)], axis=-3)


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


def _loop_per_step(Lambda_bar: Array, drive: Array, state: Array) -> Array:
    def body(x: Array, at: tuple) -> tuple[Array, Array]:
        Lambda_bar_k, drive_k = at
        x = Lambda_bar_k * x + drive_k
        return x, x

    _, states = lax.scan(body, state, (_time_first(Lambda_bar, -2), _time_first(drive, -2)))
    return jnp.moveaxis(states, 0, -2)


def associative_scan(Lambda_bar: Array, drive: Array, state: Array | None = None, resets: Array | None = None) -> Array:
    """ptd.recurrence.scan as lax.associative_scan over pairs of coefficient and drive."""
    a = jnp.broadcast_to(Lambda_bar, drive.shape)
    if resets is not None:
        a = jnp.where(resets[..., None], jnp.zeros_like(a), a)
    if state is not None:
        drive = drive.at[..., 0, :].add(a[..., 0, :] * state)

    def compose(left: tuple, right: tuple) -> tuple[Array, Array]:
        return right[0] * left[0], right[0] * left[1] + right[1]

    return lax.associative_scan(compose, (a, drive), axis=drive.ndim - 2)[1]


def _time_first(x: Array, axis: int) -> Array:
    return jnp.moveaxis(x, axis, 0)


#: The table of each platform. The forms are those that are fastest there, by measurement: see ptd_jax.speed.
TABLES = {
    platform: Kernels(
        scan=scan, scan_low_rank=scan_low_rank, carries=carries, activations=frozenset({"bfloat16"}), forms=forms
    )
    for platform, forms in {
        # A product with a chunk's (T H, T H) matrix costs a CPU more than the recurrence it shortens.
        "cpu": {"s5": "scan", "s4d": "chunked", "dss": "chunked"},
        "default": {"s5": "chunked", "s4d": "chunked", "dss": "chunked"},
    }.items()
}


def table(platform: str) -> Kernels:
    """The kernels of a platform as jax names it: "cpu", "gpu", "tpu", ..."""
    return TABLES.get(platform, TABLES["default"])


jax.tree_util.register_dataclass(LowRankTransition, data_fields=["diagonal", "left", "right"], meta_fields=["conj_sym"])
