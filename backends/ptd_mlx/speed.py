"""Speed of the mlx backend; see ptd.speed. Run by ``ptd bench --backend mlx``."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

import ptd
from ptd.arrays import Array
from ptd.layers import S5
from ptd.speed import Figure, median_seconds

from . import MlxBackend

GIB = 2**30
LENGTHS = (1024, 4096, 16384)
#: A quarter of the width of the Path-X recipe, and a layer in which products weigh twice as much.
LAYERS = (S5(32, 64), S5(64, 64))

#: Of the outputs in the loss.
WEIGHTS = 0.7

Run = Callable[[Mapping[str, Array], Array], Array]


def layers(backend: MlxBackend) -> Iterator[Figure]:
    """S5 layers forward and backward, compiled, against the plain way of writing them in mlx."""
    for layer in LAYERS:
        for L in LENGTHS:
            yield from _layer(backend, layer, L)


def _layer(backend: MlxBackend, layer: S5, L: int) -> Iterator[Figure]:
    drawn = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    params = {name: backend.asarray(value, "float32") for name, value in drawn.items()}
    u = backend.asarray(np.random.default_rng(1).standard_normal((1, L, layer.d_model)), "float32")
    ours = _differentiated(lambda params, u: backend.apply(layer, params, u))
    seconds, busy, memory = _measured(mx.compile(ours), params, u)
    for name, scan in PLAIN.items():
        plain = _differentiated(functools.partial(plain_s5, scan=scan))
        other, other_busy, other_memory = _measured(plain, params, u)
        compiled, *_ = _measured(mx.compile(plain), params, u)
        yield Figure(
            f"S5 forward + backward 1 x {L} x {layer.d_model}, {layer.d_state} states",
            seconds,
            other,
            f"complex arithmetic, {name} by autodiff, in this run",
            target=5.0 if name == "recursive doubling" and mx.default_device() == mx.cpu else None,
            gibibytes=memory / GIB,
            note=f"{memory / L:.0f} bytes a sample, theirs {other_memory / L:.0f}; "
            f"processor time {other_busy / busy:.1f} times ours; theirs compiled {compiled / seconds:.1f} times ours",
        )


def plain_s5(params: Mapping[str, Array], u: Array, scan: Callable[[Array, Array], Array]) -> Array:
    """S5 as its equations read, in mlx's complex numbers."""
    Lambda, B, C = (params[f"{name}_re"] + 1j * params[f"{name}_im"] for name in ("Lambda", "B", "C"))
    Lambda_bar = mx.exp(Lambda * mx.exp(params["log_step"]))
    drive = u.astype(mx.complex64) @ (((Lambda_bar - 1) / Lambda)[:, None] * B).T
    x = scan(mx.broadcast_to(Lambda_bar, drive.shape), drive)
    return 2 * mx.real(x @ C.T) + params["D"] * u


def doubled(a: Array, b: Array) -> Array:
    """The scan in log2(L) passes over everything; after each, x_k holds twice as many samples."""
    distance = 1
    while distance < b.shape[-2]:
        ahead = a[..., distance:, :]
        carried = ahead * b[..., :-distance, :]
        b = mx.concatenate([b[..., :distance, :], b[..., distance:, :] + carried], axis=-2)
        a = mx.concatenate([a[..., :distance, :], ahead * a[..., :-distance, :]], axis=-2)
        distance *= 2
    return b


def halved(a: Array, b: Array) -> Array:
    """The scan as a tree over neighbours, for L a power of two."""
    *batch, L, M = b.shape
    if L == 1:
        return b
    a, b = (part.reshape(*batch, L // 2, 2, M) for part in (a, b))
    (a_0, a_1), (b_0, b_1) = ((part[..., 0, :], part[..., 1, :]) for part in (a, b))
    ends = halved(a_1 * a_0, a_1 * b_0 + b_1)
    before = mx.concatenate([mx.zeros_like(ends[..., :1, :]), ends[..., :-1, :]], axis=-2)
    return mx.stack([a_0 * before + b_0, ends], axis=-2).reshape(*batch, L, M)


PLAIN = {"recursive doubling": doubled, "a tree": halved}


def _differentiated(run: Run) -> Callable[..., Any]:
    return mx.value_and_grad(lambda params, u: mx.sum(run(params, u) * WEIGHTS), argnums=(0, 1))


def _measured(run: Callable[..., Any], params: Mapping[str, Array], u: Array) -> tuple[float, float, int]:
    """Median seconds, mean processor seconds of all threads, and the peak memory of a run beyond what was in use."""
    runs = 0

    def once() -> None:
        nonlocal runs
        runs += 1
        mx.eval(run(params, u))

    once()
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    once()
    peak = mx.get_peak_memory() - before
    runs, busy = 0, time.process_time()
    seconds = median_seconds(once, lambda: None, budget=0.5)
    return seconds, (time.process_time() - busy) / runs, peak


FIGURES: dict[str, Callable[[MlxBackend], Iterator[Figure]]] = {"layers": layers}
