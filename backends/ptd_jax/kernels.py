"""Kernels of the jax backend: recurrences as one compiled loop, or as a tree where steps cost a launch each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ptd import checks, chunks, convolution
from ptd.arrays import Array, as_planes, from_planes
from ptd.kernels import Kernels, by_kind, by_size_on_cpu
from ptd.recurrence import LowRankTransition

from .convolution import cauchy, vandermonde_on_cpu
from .recurrences import loop, tree


@dataclass(frozen=True)
class Recurrence:
    """One way to run x_k = Lambda_bar x_{k-1} + drive_k.

    Attributes:
        carries: as ptd.chunks.carries, with the states that enter from both sides, (..., D, 2, M), in the precision of
            Lambda_bar; what it returns has that precision or the drive's.
        scan: as ptd.recurrence.scan, with a state and without resets.
        both_ways: as ptd.kernels.Kernels has it.
        per_feature_chunks: as ptd.kernels.Kernels has it.
    """

    carries: Callable[[Array, Array, Array], tuple[Array, Array]]
    scan: Callable[[Array, Array, Array], Array]
    both_ways: Callable[[Array, Array, int], Array] | None = None
    per_feature_chunks: Callable[..., tuple[Array, Array] | None] | None = None


def scan_by(recurrence: str) -> Callable[..., Array]:
    """ptd.recurrence.scan by one of RECURRENCES."""
    run = RECURRENCES[recurrence]().scan

    def scan(Lambda_bar: Array, drive: Array, state: Array | None = None, resets: Array | None = None) -> Array:
        if resets is not None:
            Lambda_bar = jnp.where(resets[..., None], jnp.zeros_like(Lambda_bar), Lambda_bar)
            state = None if state is None else jnp.where(resets[..., 0, None], jnp.zeros_like(state), state)
        shape = drive[..., 0, :].shape
        state = jnp.zeros(shape, drive.dtype) if state is None else jnp.broadcast_to(state, shape)
        return run(Lambda_bar, drive, state)

    return scan


def carries_by(recurrence: str) -> Callable[..., tuple[Array, Array]]:
    """ptd.chunks.carries by one of RECURRENCES, both directions at once; its argument scan is not used."""
    run = RECURRENCES[recurrence]().carries

    def carries(Lambda_bar: Array, drive: Array, state: Array | None = None, **_: Any) -> tuple[Array, Array]:
        start = jnp.zeros(drive[..., 0, :, :, :].shape, Lambda_bar.real.dtype)
        start = start if state is None else start.at[..., 0, :, :].set(state)
        entering, final = run(Lambda_bar, drive, start)
        return entering.astype(drive.dtype), final

    return carries


def on_planes(fixed: Callable[..., Array], per_step: Callable[..., Array]) -> Recurrence:
    """The recurrence from its form on planes, with time first, and that for a coefficient per step."""

    def scan(Lambda_bar: Array, drive: Array, state: Array) -> Array:
        if Lambda_bar.ndim > 1:
            return per_step(Lambda_bar, drive, state)
        planes = jnp.moveaxis(as_planes(drive), -3, 0)
        return from_planes(jnp.moveaxis(fixed(Lambda_bar, planes, as_planes(state)), 0, -3))

    return Recurrence(functools.partial(_carries, fixed), scan)


def _carries(fixed: Callable, Lambda_bar: Array, drive: Array, start: Array) -> tuple[Array, Array]:
    if Lambda_bar.ndim > 1:
        H, M = Lambda_bar.shape
        Lambda_bar = Lambda_bar.reshape(H, *(1,) * (drive.ndim - 4), M)
    x = fixed(Lambda_bar, jnp.moveaxis(_aligned(drive.astype(start.dtype)), -4, 0), start)
    entering = jnp.concatenate([start[None], x[:-1]])
    return _aligned(jnp.moveaxis(entering, 0, -4)), x[-1]


def _aligned(planes: Array) -> Array:
    """Planes (..., n, D, 2, M) with direction 1 reversed in time: its own inverse."""
    if planes.shape[-3] == 1:
        return planes
    return jnp.stack([planes[..., 0, :, :], jnp.flip(planes[..., 1, :, :], axis=-3)], axis=-3)


def exact_matmul(x: Array, y: Array) -> Array:
    """x @ y in full, also where jax_default_matmul_precision lets a GPU round factors to TF32."""
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def scan_low_rank(
    transition: LowRankTransition, drive: Array, state: Array | None = None, resets: Array | None = None
) -> Array:
    """ptd.recurrence.scan_low_rank as one sequential loop: products of its transitions do not stay low-rank."""
    per_step = transition.diagonal.ndim > 2
    parts = (transition.diagonal, transition.left, transition.right) if per_step else ()
    steps = tuple(_time_first(part, axis) for part, axis in zip(parts, (-3, -4, -4), strict=False))
    keep = None if resets is None else _time_first(~resets, -1)[..., None, None]

    def body(x: Array, at: tuple[Array, Array | None, tuple[Array, Array, Array] | tuple[()]]) -> tuple[Array, Array]:
        drive_k, keep_k, coefficients = at
        x = x if keep_k is None else jnp.where(keep_k, x, jnp.zeros_like(x))
        now = LowRankTransition(*coefficients, transition.conj_sym) if coefficients else transition
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


def _pallas() -> Recurrence:
    from . import pallas_chunks, pallas_gpu

    return Recurrence(pallas_gpu.carries, pallas_gpu.scan, pallas_gpu.both, pallas_chunks.per_feature_chunks)


def _pallas_tpu() -> Recurrence:
    from . import pallas_tpu

    return on_planes(pallas_tpu.scan, associative_scan)


#: The ways to run a recurrence, by name. Pallas is imported where it is asked for.
RECURRENCES: dict[str, Callable[[], Recurrence]] = {
    "loop": lambda: on_planes(loop, _loop_per_step),
    "tree": lambda: on_planes(tree, associative_scan),
    "pallas": _pallas,
    "pallas-tpu": _pallas_tpu,
}


@dataclass(frozen=True)
class Choice:
    """What is fastest on a platform, by measurement: see ptd_jax.speed.

    Attributes:
        recurrence: of RECURRENCES, with every kind of derivative.
        training: of RECURRENCES, where first gradients are all that is asked for.
        forms: the fastest by the kind of a layer; those not named run in their own default form.
    """

    recurrence: str
    training: str
    forms: Mapping[str, str]


CHUNKED = {"s5": "chunked", "s4d": "chunked", "dss": "chunked"}

#: On a CPU the loop is 1 to 3 times faster forward, 2.5 to 4 times with its gradient and 6 to 15 times in compile time
#: than the associative scan (L 64 to 65536, jax 0.10); elsewhere it would launch a kernel per step. And on a CPU the
#: product with an S5 chunk's (T H, T H) matrix costs more than the recurrence it shortens.
CHOICES = {
    "cpu": Choice("loop", "loop", CHUNKED | {"s5": "scan"}),
    "gpu": Choice("tree", "pallas", CHUNKED),
    "default": Choice("tree", "tree", CHUNKED),
}


def chunk_length_by_pallas(layer: Any, L: int) -> int:
    """T where the GPU kernel runs the recurrence: the power of two that a training step should take least time with.

    By count, a sample moves its S = 2 D M state numbers 14/T times, at 3.5 TB/s, and takes 6 T H^2 operations in the
    direct product, at 250 T/s (TF32 on an H200). With T = 1, and states after each sample, that product is not needed,
    and both directions write and read one drive, so it is 13 times: see ptd.kernels.Kernels.both_ways.
    """
    if len(layer.state_axes) == 2:
        return chunks.chunk_length(layer, L)
    states, direct = 2 * (1 + layer.bidirectional) * layer.modes * 4 / 3.5, 6 * layer.d_model**2 / 250

    def cost(T: int) -> float:
        return 13 * states if T == 1 else 14 * states / T + direct * T

    return min((T for T in (1, 2, 4, 8) if T == 1 or L >= T), key=cost)


#: Chunk lengths by recurrence, where not ptd.chunks.chunk_length.
CHUNK_LENGTHS = {"pallas": chunk_length_by_pallas}


def choice(platform: str) -> Choice:
    """The Choice of a platform as jax names it ("cpu", "gpu", "tpu")."""
    return CHOICES.get(platform, CHOICES["default"])


@functools.cache
def table(platform: str, recurrence: str, chunk: int | None = None) -> Kernels:
    """The kernels of a platform with one of RECURRENCES, and with chunks of that many samples unless None."""
    checks.choice("recurrence", recurrence, RECURRENCES)
    # Who asks for chunks of a length is to have them.
    fastest = by_size_on_cpu if platform == "cpu" and chunk is None else by_kind
    usual, ways = CHUNK_LENGTHS.get(recurrence, chunks.chunk_length), RECURRENCES[recurrence]()
    return Kernels(
        scan=scan_by(recurrence),
        scan_low_rank=scan_low_rank,
        vandermonde=vandermonde_on_cpu if platform == "cpu" else convolution.vandermonde,
        cauchy=cauchy,
        carries=carries_by(recurrence),
        chunk_length=usual if chunk is None else lambda _, L: max(1, min(chunk, L)),
        activations=frozenset({"bfloat16"}),
        both_ways=ways.both_ways,
        per_feature_chunks=ways.per_feature_chunks,
        fastest_form=fastest(choice(platform).forms),
    )


jax.tree_util.register_dataclass(LowRankTransition, data_fields=["diagonal", "left", "right"], meta_fields=["conj_sym"])
