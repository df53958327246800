"""Speed of the jax backend; see ptd.speed. Also run by ``python -m ptd_jax.speed``; --help names its arguments."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ptd
from ptd.kernels import Kernels
from ptd.layers import Layer
from ptd.model import is_statistic
from ptd.speed import TRAINING_STEPS, Figure, TrainingStep, median_seconds

from . import JaxBackend, sharding
from .kernels import RECURRENCES, associative_scan, carries_by
from .training import CHUNK

GIB = 2**30
#: Seconds to spend on one figure, in each of its two columns.
BUDGET = 1.5
#: H and batch x length of S4D layers as training steps have them.
LEARNERS_SHAPES = ((128, (50, 2048)), (256, (50, 4096)), (128, (32, 16384)))

#: How products of float32 are rounded in training steps.
PRODUCTS = "float32, TF32 products"

#: The longest sequences, and the largest activations.
TWO_DEVICES = {name: TRAINING_STEPS[name] for name in ("Path-X", "Text")}

#: The plain formulation: whole products with B and C, and lax.associative_scan over complex states between them.
PLAIN = Kernels(scan=associative_scan)


def copy_bandwidth(backend: JaxBackend) -> float:
    """Bytes per second of a large copy on the device, counting reads and writes."""
    size = 2**28 if backend.platform == "gpu" else 2**24
    x = jnp.zeros(size, jnp.float32)
    return 8 * size / _seconds(jax.jit(lambda x: x + 1.0), x)


def training_steps(
    backend: JaxBackend,
    *,
    activations: str | None = None,
    rows: Mapping[str, TrainingStep] = TRAINING_STEPS,
    steps: int = 10,
) -> Iterator[Figure]:
    """Whole training steps of the S5 recipes: forward, backward, AdamW, batches gathered on the device."""
    for name, row in rows.items():
        seconds, compile_seconds, bytes_ = _training_step(backend, row, steps, activations)
        yield Figure(
            f"{name} {row.batch} x {row.length}, {activations or PRODUCTS}",
            seconds,
            other=row.original_ms * 1e-3,
            source="the original's step, JAX on one H200, recorded",
            target=1.7 if activations is None else None,
            gibibytes=bytes_ / GIB,
            note=f"compiled in {compile_seconds:.1f} s, recurrence {backend.training.recurrence}",
        )


def _training_step(
    backend: JaxBackend, row: TrainingStep, steps: int, activations: str | None = None, mesh: Mesh | None = None
) -> tuple[float, float, int]:
    """Seconds of one step, of tracing to executable, and the bytes held meanwhile on a device."""
    rng, shape = np.random.default_rng(0), (row.batch, row.length)
    inputs = rng.integers(0, row.tokens, shape) if row.tokens else rng.random((*shape, 1), np.float32)
    leaves = row.model().initialize(rng, init="ptd-closed")
    learner = backend.learner(row.model(), leaves, row.optimizer(), 0, activations=activations, mesh=mesh)
    placed = learner.place(inputs, rng.integers(0, row.classes, row.batch))
    order = np.tile(np.arange(row.batch, dtype=np.int32), (CHUNK, 1))
    state, rest = learner._state, (learner._key, placed, order, np.int32(steps))
    with backend.fast_products():
        run, compile_seconds, bytes_ = _compiled(learner._programs.run, state, *rest)

    def once() -> None:
        nonlocal state
        state, losses = run(state, *rest)
        jax.block_until_ready(losses)

    once()
    return median_seconds(once, lambda: None, budget=BUDGET) / steps, compile_seconds, bytes_


def layers(
    backend: JaxBackend,
    *,
    layer: Layer = ptd.S5(128, 256, blocks=16),  # noqa: B008 - a frozen description
    shapes: Iterable[tuple[int, int]] = ((8, 1024), (1, 1024), (1, 4096), (1, 16384), (1, 65536)),
    kernels: Kernels = PLAIN,
    form: str = "scan",
    source: str = "plain associative scan, this run",
) -> Iterator[Figure]:
    """One layer forward and backward, by every leaf and the input, against another formulation in the same run."""
    params = _params(backend, layer)

    def run(params: Any, u: Any) -> Any:
        return backend.apply(layer, params, u)

    def plain(params: Any, u: Any) -> Any:
        return layer.apply(params, u, form=form, kernels=kernels)

    for batch, L in shapes:
        u = jax.random.normal(jax.random.key(0), (batch, L, layer.d_model))
        (ours, seconds, bytes_), (theirs, other, other_bytes) = (
            _compiled(jax.jit(jax.value_and_grad(_mean_square(f), (0, 1))), params, u) for f in (run, plain)
        )
        times = _interleaved([lambda ours=ours, u=u: ours(params, u), lambda theirs=theirs, u=u: theirs(params, u)])
        yield Figure(
            f"{layer.kind} forward + backward {batch} x {L}, H {layer.d_model}, {layer.modes} modes",
            times[0],
            other=times[1],
            source=source,
            target=2.0 if backend.platform == "cpu" else None,
            gibibytes=bytes_ / GIB,
            note=f"compiled in {seconds:.2f} s, the other in {other:.2f} s ({other / seconds:.1f}x) with "
            f"{other_bytes / GIB:.2f} GiB; {_plan(backend, layer, u.shape)}",
        )


def per_feature(
    backend: JaxBackend, *, d_model: int = 64, shapes: Iterable[tuple[int, int]] = ((4, 1024), (1, 8192))
) -> Iterator[Figure]:
    """One S4D layer forward and backward against its convolution form; as a learner's kernel, against its parts."""
    source = "convolution form, this run"
    layer = ptd.S4D(d_model, 64)
    yield from layers(backend, layer=layer, shapes=shapes, kernels=backend.kernels, form="convolution", source=source)
    learners = backend.training
    if learners.kernels.per_feature_chunks is None:
        return
    parts = dataclasses.replace(learners.kernels, per_feature_chunks=None)
    for H, shape in LEARNERS_SHAPES:
        layer = ptd.S4D(H, 64, bidirectional=True)
        source = "its parts one by one, this run"
        yield from layers(learners, layer=layer, shapes=[shape], kernels=parts, form="chunked", source=source)


def recurrences(
    backend: JaxBackend, *, rows: Mapping[str, TrainingStep] = TRAINING_STEPS, names: Iterable[str] = ()
) -> Iterator[Figure]:
    """The states that enter the chunks of each recipe's layer, forward and with the gradient, by each recurrence."""
    bandwidth = copy_bandwidth(backend)
    for row in rows.values():
        layer = row.model().layer
        chunks = -(-row.length // backend.kernels.chunk_length(layer, row.length))
        shape = (row.batch, chunks, 2, 2, layer.modes)
        a = jnp.exp(lax.complex(jnp.full(layer.modes, -0.01), jnp.linspace(0.0, 3.0, layer.modes)))
        drive = jax.random.normal(jax.random.key(0), shape)
        for name in names or (("loop", "tree") if backend.platform == "cpu" else ("tree", "pallas")):
            carries = carries_by(name)

            def forward(a: Any, drive: Any, carries: Callable = carries) -> Any:
                return carries(a, drive)[0]

            # Drive and states; and with the gradient the states again, their cotangent and the drive's.
            for label, function, passes in (
                ("forward", jax.jit(forward), 2),
                ("forward + backward", jax.jit(lambda a, d, w, f=forward: jax.vjp(f, a, d)[1](w)), 5),
            ):
                arguments = (a, drive) if passes == 2 else (a, drive, drive)
                seconds = _seconds(function, *arguments)
                fraction = passes * 4 * drive.size / seconds / bandwidth
                yield Figure(f"carries by {name}, {label}, {shape}", seconds, fraction=fraction)


def two_devices(
    backend: JaxBackend,
    *,
    rows: Mapping[str, TrainingStep] = TWO_DEVICES,
    steps: int = 10,
    layer: Layer = ptd.S5(128, 256, blocks=16, bidirectional=True),  # noqa: B008 - a frozen description
    L: int = 2**22,
) -> Iterator[Figure]:
    """Across two devices: training steps, against the same on one, and one long sequence, which has no such rival.

    Of training steps both what the batch of one device takes when it is split, and when each device has as much.
    """
    if jax.device_count() < 2:
        return
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    for name, row in rows.items():
        one, _, _ = _training_step(backend, row, steps)
        half, _, _ = _training_step(backend, dataclasses.replace(row, batch=row.batch // 2), steps)
        numbers = sum(math.prod(shape) for leaf, shape in row.model().shapes().items() if not is_statistic(leaf))
        note = f"; half the batch on one device takes {half * 1e3:.2f} ms; summed over both: moments and gradients, "
        note += f"{4 * numbers / 2**20:.1f} MiB"
        double = dataclasses.replace(row, batch=2 * row.batch)
        for whole, other, kind, source, more in (
            (row, one, "", "one device, this run", note),
            (double, 2 * one, ", batch of a device kept", "two steps of one device, this run", ""),
        ):
            both, compile_seconds, bytes_ = _training_step(backend, whole, steps, mesh=mesh)
            yield Figure(
                f"{name} {whole.batch} x {row.length}, data parallel on two devices{kind}, {PRODUCTS}",
                both,
                other,
                source,
                target=1.9,
                gibibytes=bytes_ / GIB,
                note=f"compiled in {compile_seconds:.1f} s, recurrence {backend.training.recurrence}{more}",
            )
    params = _params(backend, layer)
    for recurrence in dict.fromkeys((backend.recurrence, backend.training.recurrence)):
        across = functools.partial(sharding.apply, layer, mesh=mesh, axis="devices", recurrence=recurrence)
        u = jax.device_put(jnp.zeros((1, L, layer.d_model)), NamedSharding(mesh, PartitionSpec(None, "devices")))
        label = f"one sequence of {L} across two devices, forward + backward, recurrence {recurrence}"
        yield Figure(label, _seconds(jax.jit(jax.value_and_grad(_mean_square(across), (0, 1))), params, u))


def _mean_square(f: Callable) -> Callable:
    return lambda params, u: jnp.mean(f(params, u) ** 2)


def _params(backend: JaxBackend, layer: Layer) -> dict[str, Any]:
    drawn = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    return {name: backend.asarray(value, "float32") for name, value in drawn.items()}


def _plan(backend: JaxBackend, layer: Layer, shape: tuple[int, ...]) -> str:
    T = backend.block_length(layer, shape)
    return f"form {backend.form(layer, shape)}" + (f" in blocks of {T}" if T else "")


def _compiled(function: Any, *arguments: Any) -> tuple[Callable, float, int]:
    """The program, the seconds from tracing to executable, and the bytes it holds while it runs."""
    begin = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds, memory = time.perf_counter() - begin, compiled.memory_analysis()
    held = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return compiled, seconds, held - memory.alias_size_in_bytes


def _seconds(function: Callable, *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    return median_seconds(lambda: jax.block_until_ready(function(*arguments)), lambda: None, budget=BUDGET / 3)


def _interleaved(runs: list[Callable]) -> list[float]:
    """Median seconds of each, taken in turns: what else the machine does in between falls on all alike."""
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        jax.block_until_ready(run())
    begin = time.perf_counter()
    while len(samples[-1]) < 5 or time.perf_counter() - begin < 2 * BUDGET:
        for run, taken in zip(runs, samples, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken.append(time.perf_counter() - start)
    return [float(np.median(taken)) for taken in samples]


FIGURES: dict[str, Callable[..., Iterator[Figure]]] = {
    "training": training_steps,
    "training-bf16": functools.partial(training_steps, activations="bfloat16"),
    "layers": layers,
    "per-feature": per_feature,
    "recurrences": recurrences,
    "two-devices": two_devices,
}


def main() -> None:
    """Print figures, one a line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("figures", nargs="+", choices=FIGURES)
    parser.add_argument("--only", nargs="*", choices=TRAINING_STEPS, help="rows of training and recurrences")
    parser.add_argument("--recurrence", choices=RECURRENCES, help="by default the platform's")
    chosen = parser.parse_args()
    backend = JaxBackend(recurrence=chosen.recurrence)
    for name in chosen.figures:
        rows = {row: TRAINING_STEPS[row] for row in chosen.only or TRAINING_STEPS}
        options = {"rows": rows} if name.startswith("training") or name == "recurrences" else {}
        for figure in FIGURES[name](backend, **options):
            ratio = "" if figure.ratio is None else f"{figure.ratio:6.2f}x"
            print(f"{figure.seconds * 1e3:10.3f} ms {ratio:8} {dataclasses.asdict(figure)}", flush=True)


if __name__ == "__main__":
    main()
