"""The GPU kernels of the mlx backend: on mlx's GPU where there is one, Apple's or NVIDIA's, and otherwise on the host.

There the text that mlx generates is compiled over a shim of Metal. What the shim cannot show: Metal's own compiler, and
the arithmetic and the memory of a real GPU.
"""

from __future__ import annotations

import functools
import re

import mlx.core as mx
import numpy as np
import pytest
from metal_shim import Kernel

import ptd
from ptd import recurrence
from ptd_conformance.bench import Bench
from ptd_conformance.outcome import Outcome
from ptd_conformance.runner import run, trials
from ptd_mlx import MlxBackend, gpu
from ptd_mlx.kernels import ON_GPU, with_gradient

#: Whether the kernels run as Metal or CUDA, without the shim.
ON_A_GPU = mx.default_device() == mx.gpu
of_the_shim = pytest.mark.skipif(ON_A_GPU, reason="on a GPU the kernels run without the shim")

EPS = 2.0**-23
BATCH = 2


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Kernels on the shim, each compiled once."""
    folder = tmp_path_factory.mktemp("kernels")
    return functools.cache(lambda name, i, o: Kernel(folder, name, i, o, gpu.source(f"{name}.metal")))


@pytest.fixture(autouse=True)
def kernels_that_run(compiled, monkeypatch):
    if not ON_A_GPU:
        monkeypatch.setattr(gpu, "kernel", compiled)


def draw(rng, *shape):
    """Complex normal values, exact in float32."""
    return (rng.standard_normal((*shape, 2)).astype(np.float32).astype(float) @ [1, 1j]).reshape(shape)


def stable(rng, *shape):
    """Complex numbers of modulus 0.5 to 0.99."""
    z = draw(rng, *shape)
    z = z / np.abs(z) * rng.uniform(0.5, 0.99, shape)
    return z.astype(np.complex64).astype(complex)


def planes(z):
    return mx.array(z.real.astype(np.float32)), mx.array(z.imag.astype(np.float32))


def joined(pair):
    return np.array(pair[0], np.float64) + 1j * np.array(pair[1], np.float64)


def flags(rng, L, used):
    return rng.uniform(size=(BATCH, L)) < 0.15 if used else None


def on_device(resets):
    return None if resets is None else mx.array(resets)


def agree(found, expected, size):
    """Within 64 roundings of the size of what was summed."""
    np.testing.assert_array_less(np.abs(found - expected), 64 * EPS * size + 1e-30)


# --- diagonal scan ---------------------------------------------------------------------------------------------

SCANS = {
    f"{step} {cuts} {direction}": (step == "per step", cuts == "resets", direction == "reverse")
    for step in ("fixed", "per step")
    for cuts in ("whole", "resets")
    for direction in ("forward", "reverse")
}


def scan_arguments(L, M, per_step, with_resets):
    rng = np.random.default_rng(L + M)
    a = stable(rng, *((BATCH, L, M) if per_step else (M,)))
    return a, draw(rng, BATCH, L, M), draw(rng, BATCH, M), flags(rng, L, with_resets)


def reference_scan(a, b, start, resets, reverse):
    if not reverse:
        return recurrence.scan(a, b, start, resets)
    a, resets = (a[:, ::-1] if a.ndim > 1 else a), None if resets is None else resets[:, ::-1]
    return recurrence.scan(a, b[:, ::-1], start, resets)[:, ::-1]


@pytest.mark.parametrize(("per_step", "resets", "reverse"), SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("L", [1, 2, 16, 61])
@pytest.mark.parametrize("M", [1, 5, 33])
def test_scan_equals_its_definition(L, M, per_step, resets, reverse):
    a, b, start, flagged = scan_arguments(L, M, per_step, resets)
    x = with_gradient(gpu.run, planes(a), planes(b), planes(start), on_device(flagged), reverse=reverse)
    size = reference_scan(np.abs(a), np.abs(b), np.abs(start), flagged, reverse)
    agree(joined(x), reference_scan(a, b, start, flagged, reverse), size)


@pytest.mark.parametrize(("per_step", "resets", "reverse"), SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("L", [1, 37])
def test_gradients_of_the_scan_are_its_derivatives(L, per_step, resets, reverse):
    a, b, start, flagged = scan_arguments(L, 3, per_step, resets)
    w = draw(np.random.default_rng(7), BATCH, L, 3)

    def loss(a, b, start):
        x = with_gradient(gpu.run, a, b, start, on_device(flagged), reverse=reverse)
        return sum(mx.sum(v * x_part) for v, x_part in zip(planes(w), x, strict=True))

    found = mx.grad(loss, argnums=(0, 1, 2))(planes(a), planes(b), planes(start))
    derivatives_agree(
        lambda a, b, start: inner(w, reference_scan(a, b, start, flagged, reverse)), (a, b, start), map(joined, found)
    )


def inner(w, x):
    """The real inner product of complex arrays."""
    return float(np.sum(w.real * x.real + w.imag * x.imag))


def derivatives_agree(loss, arguments, gradients):
    """Central differences of a reference loss along a random direction of each argument equal its gradient there."""
    for index, gradient in enumerate(gradients):
        value = arguments[index]
        along = draw(np.random.default_rng(index), *value.shape)
        along = along if np.iscomplexobj(value) else along.real
        moved = [loss(*arguments[:index], value + h * along, *arguments[index + 1 :]) for h in (1e-5, -1e-5)]
        size = np.sum(np.abs(gradient) * np.abs(along))
        assert abs(inner(gradient, along) - (moved[0] - moved[1]) / 2e-5) < 256 * EPS * size + 1e-8


# --- fused scan ------------------------------------------------------------------------------------------------


def siso_arguments(L, N, with_resets, H=3):
    rng = np.random.default_rng(L + N)
    u = rng.standard_normal((BATCH, H, L)).astype(np.float32).astype(float)
    a, w, c = stable(rng, H, N), draw(rng, H, N), draw(rng, H, N)
    return u, a, w, c, draw(rng, BATCH, H, N), flags(rng, L, with_resets)


def reference_siso(u, a, w, c, start, resets):
    """y and the final states, from the definition of the scan and a sum."""
    H, N = a.shape
    drive = (w * u.swapaxes(1, 2)[..., None]).reshape(BATCH, -1, H * N)
    x = recurrence.scan(a.reshape(-1), drive, start.reshape(BATCH, -1), resets).reshape(BATCH, -1, H, N)
    return np.sum((c * x).real, axis=-1).swapaxes(1, 2), x[:, -1]


@pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
@pytest.mark.parametrize("L", [1, 32, 33, 150])
@pytest.mark.parametrize("N", [1, 16, 40])
def test_fused_scan_equals_scan_and_readout(L, N, resets):
    u, a, w, c, start, flagged = siso_arguments(L, N, resets)
    y, end = gpu.siso_scan(mx.array(u.astype(np.float32)), *map(planes, (a, w, c, start)), on_device(flagged))
    size, end_size = reference_siso(np.abs(u), np.abs(a), np.abs(w), np.abs(c), np.abs(start), flagged)
    expected, end_expected = reference_siso(u, a, w, c, start, flagged)
    agree(np.array(y, np.float64), expected, size)
    agree(joined(end), end_expected, end_size)


@pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
@pytest.mark.parametrize(("L", "N"), [(1, 3), (70, 3), (40, 40)])
def test_gradients_of_the_fused_scan_are_its_derivatives(L, N, resets):
    *arguments, flagged = siso_arguments(L, N, resets, H=2)
    rng = np.random.default_rng(8)
    gy, gend = rng.standard_normal((BATCH, 2, L)), draw(rng, BATCH, 2, N)

    def loss(u, *system):
        y, end = gpu.siso_scan(u, *system, on_device(flagged))
        return mx.sum(mx.array(gy.astype(np.float32)) * y) + sum(
            mx.sum(v * part) for v, part in zip(planes(gend), end, strict=True)
        )

    given = (mx.array(arguments[0].astype(np.float32)), *map(planes, arguments[1:]))
    gu, *found = mx.grad(loss, argnums=(0, 1, 2, 3, 4))(*given)

    def reference(*arguments):
        y, end = reference_siso(*arguments, flagged)
        return inner(gy.astype(np.float32), y) + inner(gend, end)

    derivatives_agree(reference, tuple(arguments), [np.array(gu, np.float64), *map(joined, found)])


# --- layers ----------------------------------------------------------------------------------------------------


class WithKernels(MlxBackend):
    """The backend with the kernels of a GPU."""

    kernels = ON_GPU


#: Clauses in which the kernels meet everything a layer does with them, on diagonal layers.
CLAUSES = ("K1", "K2", "K6", "L1", "L3", "L6", "L8", "L10", "L11", "L12", "L15", "L17", "G1", "G2", "G3", "G5")
TRIALS = [
    trial
    for trial in trials(WithKernels())
    if trial.clause.id in CLAUSES and not trial.subject.startswith("s4-") and "bilinear" not in trial.subject
]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_conformance_holds_with_the_kernels_of_a_gpu(trial, bench):
    result = run(trial, bench)
    assert result.outcome is Outcome.PASS, result.reason


@pytest.fixture(scope="module")
def bench():
    return Bench(WithKernels(), "float32")


@pytest.mark.parametrize(("call", "expected"), [({}, "siso_scan"), ({"step_scale": np.ones(5)}, "diagonal_scan")])
def test_a_layer_per_feature_scans_in_the_fused_kernel_where_steps_are_equal(call, expected, monkeypatch):
    used, kernel = [], gpu.kernel
    monkeypatch.setattr(gpu, "kernel", lambda name, *names: used.append(name) or kernel(name, *names))
    layer = ptd.S4D(3, 4)
    params = {n: mx.array(v) for n, v in ptd.initialize(layer, np.random.default_rng(0), init="legs").items()}
    WithKernels().apply(layer, params, mx.ones((2, 5, 3)), form="scan", **call)
    assert used == [expected]


# --- what the shim is good for ---------------------------------------------------------------------------------


@of_the_shim
@pytest.mark.parametrize("order", [lambda n: np.arange(n)[::-1], lambda n: np.random.default_rng(0).permutation(n)])
def test_the_order_of_threads_does_not_matter(order, compiled, monkeypatch):
    u, a, w, c, start, flagged = siso_arguments(70, 5, True)
    b = draw(np.random.default_rng(1), BATCH, 70, 5)

    def everything():
        x = gpu.run(planes(a[0]), planes(b), planes(start[:, 0]), on_device(flagged))
        run = functools.partial(gpu.siso_scan, resets=on_device(flagged))
        arguments = (mx.array(u.astype(np.float32)), *map(planes, (a, w, c, start)))
        gradient = mx.grad(lambda *v: mx.sum(run(*v)[0]), argnums=(0, 1, 2, 3, 4))(*arguments)
        return [np.array(v) for v in (*x, run(*arguments)[0], gradient[0], *(v for pair in gradient[1:] for v in pair))]

    expected = everything()
    monkeypatch.setattr(Kernel, "turns", staticmethod(order))
    for found, due in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(found, due)


BROKEN = {
    "without its barrier": (r"threadgroup_barrier\(.*\);", ""),
    "with a barrier in one piece only": (r"(threadgroup_barrier\(.*\);)", r"if (chunk == 0) { \1 }"),
    "writing one step late": (r"out_re\[here\]", "out_re[here + M]"),
    "reading one step late": (r"b_re\[here\]", "b_re[here + M]"),
    "running past the end": (r"min\(first \+ length, L\)", "(first + length)"),
}


@of_the_shim
@pytest.mark.parametrize("change", BROKEN)
def test_the_shim_catches_a_kernel(change, tmp_path, monkeypatch):
    """Each defect shows as an error of the shim or as a wrong result in one of three orders of threads."""
    text = re.sub(*BROKEN[change], gpu.source("diagonal_scan.metal"))
    assert text != gpu.source("diagonal_scan.metal")
    monkeypatch.setattr(gpu, "kernel", lambda name, i, o: Kernel(tmp_path, name, i, o, text))
    a, b, start, _ = scan_arguments(61, 5, False, False)

    def right(order):
        monkeypatch.setattr(Kernel, "turns", staticmethod(order))
        try:
            x = gpu.run(planes(a), planes(b), planes(start))
        except RuntimeError:
            return False
        return bool(np.max(np.abs(joined(x) - recurrence.scan(a, b, start))) < 1e-4)

    orders = [np.arange, lambda n: np.arange(n)[::-1], lambda n: np.random.default_rng(0).permutation(n)]
    assert not all(map(right, orders))
