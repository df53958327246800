"""Speed of the torch backend; see ptd.speed. Run by ``ptd bench --backend torch``."""

from __future__ import annotations

import functools
import importlib.util
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import ptd
from ptd.layers import Layer
from ptd.speed import TRAINING_STEPS, Figure, median_seconds

from . import TorchBackend
from .graphs import captured
from .scan import scan

GIB = 2**30


def copy_bandwidth(backend: TorchBackend) -> float:
    """Bytes per second of a large device-to-device copy, counting reads and writes."""
    size = 2**30 if backend.torch_device.type == "cuda" else 2**26
    a = torch.empty(size, dtype=torch.uint8, device=backend.torch_device)
    b = torch.empty_like(a)
    return 2 * size / _seconds(backend, lambda: b.copy_(a))


def training_steps(
    backend: TorchBackend, *, activations: str | None = None, names: tuple[str, ...] = tuple(TRAINING_STEPS)
) -> Iterator[Figure]:
    """Whole training steps of the S5 recipes: forward, backward, AdamW, batches gathered on the device."""
    for name in names:
        row = TRAINING_STEPS[name]
        rng = np.random.default_rng(0)
        shape = (row.batch, row.length)
        inputs = (
            rng.integers(0, row.tokens, shape).astype(np.uint8) if row.tokens else rng.random((*shape, 1), np.float32)
        )
        model = row.model()
        params = model.initialize(rng, init="ptd-closed")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        learner = backend.learner(model, params, row.optimizer(), 0, activations=activations)
        placed = learner.place(inputs, rng.integers(0, row.classes, row.batch))
        run = functools.partial(learner.train, placed, np.tile(np.arange(row.batch), (5, 1)))
        with backend.fast_products():
            run()
            compile_seconds = time.perf_counter() - begin
            seconds = median_seconds(run, torch.cuda.synchronize, budget=1.0) / 5
            spent = time_by_kind(run, 5)
        yield Figure(
            f"{name} {row.batch} x {row.length}, {activations or 'float32, TF32 products'}",
            seconds,
            other=row.original_ms * 1e-3,
            source="the original's step, JAX on one H200, recorded",
            target=3.0 if activations is None else None,
            gibibytes=torch.cuda.max_memory_allocated() / GIB,
            note=f"first call {compile_seconds:.0f} s; {spent}",
        )
        del learner, placed, run


#: What a kernel does, by the first pattern that its name holds; what holds none is a pass over activations. The walks
#: of S4D, DSS and S4 over chunks, mostly small products, count as scans.
KINDS = {
    "products": re.compile(r"gemm|gemv|nvjet|cutlass|splitK|_product"),
    "scans": re.compile(r"^_(walk|ends|states|adjoint)$"),
    "passes": re.compile(""),
}


def time_by_kind(run: Callable[[], Any], times: int) -> str:
    """Where the device's time goes in run(), which does one thing so many times: ms of each, by kinds of kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    spent, launches = dict.fromkeys(KINDS, 0.0), 0
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launches += 1
            kind = next(kind for kind, pattern in KINDS.items() if pattern.search(event.name))
            spent[kind] += event.device_time_total
    parts = ", ".join(f"{kind} {us / times / 1e3:.2f}" for kind, us in spent.items())
    return f"ms on the device: {parts}; {launches / times:.0f} launches"


def scans(backend: TorchBackend) -> Iterator[Figure]:
    """The time-invariant scan on planes, forward and with its gradient, against accelerated-scan where installed."""
    bandwidth = copy_bandwidth(backend)
    for B, M, L in ((50, 64, 2048), (50, 192, 1024), (50, 96, 4096), (32, 128, 16384)):
        theirs = _accelerated_scan(backend, B, M, L)
        a = torch.polar(torch.full((M,), 0.99), torch.linspace(-1, 1, M)).to(backend.torch_device)
        a = torch.stack([a.real, a.imag]).requires_grad_()
        drive = torch.randn(B, L, 1, 2, M, device=backend.torch_device).requires_grad_()
        weights = torch.randn_like(drive)

        def forward(a: Any = a, drive: Any = drive) -> Any:
            return scan(a, drive, None, False)[0]

        def both(a: Any = a, drive: Any = drive, weights: Any = weights) -> Any:
            return torch.autograd.grad(forward(a, drive), [a, drive], weights)

        with torch.no_grad():
            seconds = _seconds(backend, forward)
        elements = B * M * L
        yield Figure(
            f"scan forward {B} x {M} x {L}", seconds, theirs[0], "accelerated-scan in this run" if theirs[0] else "",
            fraction=16 * elements / seconds / bandwidth, target=None,
        )  # fmt: skip
        seconds = _seconds(backend, both)
        yield Figure(
            f"scan forward + backward {B} x {M} x {L}", seconds, theirs[1],
            "accelerated-scan in this run" if theirs[1] else "",
            fraction=40 * elements / seconds / bandwidth, target=3.0,
        )  # fmt: skip


def _accelerated_scan(backend: TorchBackend, B: int, M: int, L: int) -> tuple[float | None, float | None]:
    if importlib.util.find_spec("accelerated_scan") is None:
        return None, None
    from accelerated_scan.complex import scan as theirs

    gates = torch.polar(torch.full((B, M, L), 0.99), torch.rand(B, M, L)).to(backend.torch_device).requires_grad_()
    tokens = torch.randn(B, M, L, dtype=torch.complex64, device=backend.torch_device).requires_grad_()
    weights = torch.randn_like(tokens)
    with torch.no_grad():
        forward = _seconds(backend, lambda: theirs(gates, tokens))
    both = _seconds(backend, lambda: torch.autograd.grad(theirs(gates, tokens), [gates, tokens], weights))
    return forward, both


#: (batch, H, L), and the original's forward + backward in ms on one H200: diagonal, diagonal plus low rank.
BLOCKS = {
    (50, 128, 2048): (3.36, 3.90),
    (50, 512, 1024): (7.62, 8.91),
    (50, 256, 4096): (11.51, 13.07),
    (32, 128, 16384): (13.96, 15.95),
}


def blocks(backend: TorchBackend) -> Iterator[Figure]:
    """One bidirectional S4D and S4 layer of 64 states, forward and backward."""
    for kind, index, target in ((ptd.S4D, 0, 4.0), (ptd.S4, 1, 3.0)):
        for (B, H, L), original in BLOCKS.items():
            layer = kind(H, 64, bidirectional=True)
            yield _layer_figure(backend, layer, B, L, original[index] * 1e-3, target)


def _layer_figure(
    backend: TorchBackend, layer: Layer, B: int, L: int, other: float | None, target: float | None
) -> Figure:
    torch.cuda.reset_peak_memory_stats()
    run = layer_run(backend, layer, B, L)
    begin = time.perf_counter()
    with backend.fast_products():
        run()
        first = time.perf_counter() - begin
        # As whole training steps are: what the host takes for single operators is not in it.
        seconds = _seconds(backend, captured(run)[0].replay)
    return Figure(
        f"{layer.kind} forward + backward {B} x {layer.d_model} x {L}, TF32 products",
        seconds,
        other,
        "the original's layer, one H200, recorded" if other else "",
        target=target,
        gibibytes=torch.cuda.max_memory_allocated() / GIB,
        note=f"first call {first:.0f} s; as one CUDA graph",
    )


def layer_run(backend: TorchBackend, layer: Layer, B: int, L: int) -> Callable[[], Any]:
    """Forward and backward of one compiled layer, by every leaf and the input."""
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    params = {name: backend.asarray(value, "float32").requires_grad_() for name, value in leaves.items()}
    u = torch.randn(B, L, layer.d_model, device=backend.torch_device).requires_grad_()
    weights = torch.randn_like(u)
    apply = backend.compiled(lambda params, u: backend.apply(layer, params, u))
    return lambda: torch.autograd.grad(apply(params, u), [*params.values(), u], weights)


def layers(backend: TorchBackend) -> Iterator[Figure]:
    """One S5 layer forward and backward, uncompiled, against the package s5-pytorch where it is installed."""
    H, P = 64, 64
    layer = ptd.S5(H, 2 * P)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    params = {name: backend.asarray(value, "float32").requires_grad_() for name, value in leaves.items()}
    for L in (1024, 4096, 16384, 65536):
        u = torch.randn(1, L, H, device=backend.torch_device).requires_grad_()

        def ours(u: Any = u) -> Any:
            return torch.autograd.grad(backend.apply(layer, params, u).square().mean(), [*params.values(), u])

        other = None
        if importlib.util.find_spec("s5") is not None:
            from s5 import S5

            theirs = S5(H, P).to(backend.torch_device)

            def run(u: Any = u, theirs: Any = theirs) -> Any:
                return torch.autograd.grad(theirs(u).square().mean(), [*theirs.parameters(), u])

            other = _seconds(backend, run)
        yield Figure(
            f"s5 forward + backward 1 x {H} x {L}, {P} modes",
            _seconds(backend, ours),
            other,
            "s5-pytorch in this run" if other else "",
            target=3.0,
        )


def long_sequence(backend: TorchBackend) -> Iterator[Figure]:
    """One S5 layer on 2^20 samples, batch 1."""
    yield _layer_figure(backend, ptd.S5(128, 256, blocks=16, bidirectional=True), 1, 2**20, None, None)


def steps(backend: TorchBackend) -> Iterator[Figure]:
    """One sample through a model of six S5 layers, H 256 and P 192, with kept states; time without a comparison."""
    model = ptd.SequenceModel(
        ptd.S5(256, 192, blocks=12), 6, 1, 10, norm="batch", activation="half_glu2", pooling="last"
    )
    module = backend.module(model, model.initialize(np.random.default_rng(0), init="legs")).eval()
    for batch in (1, 256):
        stepper, u = backend.stepper(module, (batch,)), torch.randn(batch, 1, device=backend.torch_device)
        with backend.fast_products():
            seconds = _seconds(backend, functools.partial(stepper, u))
        yield Figure(
            f"step of 6 x s5, H 256, P 192, batch {batch}",
            seconds,
            note=f"{batch / seconds:.3g} samples/s; states {stepper.state_bytes} bytes, whatever the length",
        )


def _seconds(backend: TorchBackend, run: Callable[[], Any]) -> float:
    gpu = backend.torch_device.type == "cuda"
    finish = torch.cuda.synchronize if gpu else (lambda: None)
    for _ in range(3):
        run()
    finish()
    return median_seconds(run, finish, budget=0.5, batch=10 if gpu else 1)


FIGURES: dict[str, Callable[[TorchBackend], Iterator[Figure]]] = {
    "training": training_steps,
    "training-bf16": lambda backend: training_steps(backend, activations="bfloat16"),
    "scans": scans,
    "blocks": blocks,
    "long": long_sequence,
    "steps": steps,
    "layers": layers,
}
