"""Single kernels against their definitions: the functions of ptd.kernels.Kernels that a backend may replace."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptd import chunks, convolution, recurrence
from ptd.arrays import as_planes

from .. import tolerance
from ..bench import Bench
from ..cases import generic, steps
from ..clause import clause
from ..outcome import Measurement, compare

#: Lengths around what parallel scans split by: one, two, a prime, a power of two and its neighbour.
LENGTHS = {"L1": 1, "L2": 2, "L127": 127, "L128": 128, "L129": 129}
M = 5


def coefficients(shape: tuple[int, ...]) -> NDArray:
    """Complex numbers in the unit disk, a few of them within 1e-3 of its edge, exact in float32."""
    rng = np.random.default_rng(3)
    radius = np.where(rng.uniform(size=shape) < 0.3, 0.999, rng.uniform(0.2, 0.99, shape))
    z = radius * np.exp(1j * rng.uniform(-np.pi, np.pi, shape))
    return z.astype(np.complex64).astype(np.complex128)


def signal(shape: tuple[int, ...]) -> NDArray:
    """Complex normal values, exact in float32."""
    return generic(np.random.default_rng(4), (*shape, 2)) @ np.array([1, 1j])


def rounding(a: NDArray, drive: NDArray, state: NDArray, resets: NDArray | None, dtype: str) -> NDArray:
    """The error of the recurrence with exact coefficients: one rounding of product and sum per step."""
    size = recurrence.scan(np.abs(a), np.abs(drive), np.abs(state), resets)
    error = recurrence.scan(np.abs(a), 2 * size, 0 * np.abs(state), resets)
    return tolerance.FACTOR * np.finfo(dtype).eps * error


@clause("K1", LENGTHS, every_dtype=True)
def scan_equals_its_definition(bench: Bench, subject: str) -> Iterator[Measurement]:
    """scan with fixed coefficients equals the sequential recurrence."""
    a, drive, state = coefficients((M,)), signal((2, LENGTHS[subject], M)), signal((2, M))
    x = bench.host(bench.backend.kernels.scan(bench.array(a), bench.array(drive), bench.array(state)))
    yield compare("states", x, recurrence.scan(a, drive, state), rounding(a, drive, state, None, bench.dtype))


@clause("K2", LENGTHS, every_dtype=True)
def scan_takes_coefficients_per_step(bench: Bench, subject: str) -> Iterator[Measurement]:
    """scan with a coefficient per step and reset flags equals the sequential recurrence."""
    shape = (2, LENGTHS[subject], M)
    a, drive, state = coefficients(shape), signal(shape), signal((2, M))
    resets = np.arange(2 * LENGTHS[subject]).reshape(shape[:2]) % 7 == 3
    arguments = (bench.array(v) for v in (a, drive, state, resets))
    x = bench.host(bench.backend.kernels.scan(*arguments))
    yield compare("states", x, recurrence.scan(a, drive, state, resets), rounding(a, drive, state, resets, bench.dtype))


@clause("K3", LENGTHS, every_dtype=True)
def vandermonde_equals_its_sum(bench: Bench, subject: str) -> Iterator[Measurement]:
    """vandermonde equals Re sum_n w_n Lambda_bar_n^l."""
    L, weights, a = LENGTHS[subject], signal((3, M)), coefficients((3, M))
    K = bench.host(bench.backend.kernels.vandermonde(bench.array(weights), bench.array(a), L))
    lag = np.arange(L)
    expected = np.sum(weights[..., None] * a[..., None] ** lag, axis=-2).real
    allowed = np.sum((1 + lag) * np.abs(weights)[..., None] * np.abs(a)[..., None] ** lag, axis=-2)
    yield compare("kernel", K, expected, tolerance.FACTOR * np.finfo(bench.dtype).eps * allowed)


@clause("K4", LENGTHS, every_dtype=True)
def convolution_is_causal_and_linear(bench: Bench, subject: str) -> Iterator[Measurement]:
    """causal_convolution equals the direct sum: nothing wraps around."""
    L = LENGTHS[subject]
    u, K = signal((2, L, 3)).real, signal((3, L)).real
    y = bench.host(bench.backend.kernels.causal_convolution(bench.array(u), bench.array(K)))
    norms = np.linalg.norm(u, axis=-2, keepdims=True) * np.linalg.norm(K, axis=-1)
    allowed = tolerance.FACTOR * np.finfo(bench.dtype).eps * 3 * np.log2(2 * L) * norms
    yield compare("output", y, convolution.causal_convolution_direct(u, K), allowed)


@clause("K5", LENGTHS, every_dtype=True)
def low_rank_scan_equals_its_definition(bench: Bench, subject: str) -> Iterator[Measurement]:
    """scan_low_rank with coefficients per step and reset flags equals the sequential recurrence."""
    L = LENGTHS[subject]
    a, left, right = 0.5 * coefficients((L, 3, M)), 0.1 * signal((L, 3, M, 2)), 0.1 * signal((L, 3, M, 2))
    a, left, right = (v.astype(np.complex64).astype(complex) for v in (a, left, right))
    drive, state, resets = signal((2, L, 3, M)), signal((2, 3, M)), steps((L,)) > 1.5
    here = recurrence.LowRankTransition(bench.array(a), bench.array(left), bench.array(right), conj_sym=True)
    there = recurrence.LowRankTransition(a, left, right, conj_sym=True)
    resets = np.broadcast_to(resets, (2, L))
    x = bench.host(bench.backend.kernels.scan_low_rank(here, *(bench.array(v) for v in (drive, state, resets))))
    # ||A_bar|| <= 0.5 + 2 ||left|| ||right||, and a step rounds M products of it.
    norms = (np.linalg.norm(v, axis=(-2, -1)) for v in (left, right))
    gain = 0.5 + 2 * np.prod(list(norms), axis=0)
    size = recurrence.scan(gain, np.linalg.norm(drive, axis=-1), np.linalg.norm(state, axis=-1), resets)
    error = recurrence.scan(gain, M * size, 0 * size[:, 0], resets)
    allowed = tolerance.FACTOR * np.finfo(bench.dtype).eps * error[..., None]
    yield compare("states", x, recurrence.scan_low_rank(there, drive, state, resets), allowed)


@clause("K6", LENGTHS, every_dtype=True)
def carries_equal_their_definition(bench: Bench, subject: str) -> Iterator[Measurement]:
    """carries gives the states that enter each chunk from both sides, for shared and for per-feature coefficients."""
    n = LENGTHS[subject]
    for label, shape in (("shared", ()), ("per feature", (3,))):
        a, drive = coefficients((*shape, M)), as_planes(signal((*shape, 2, n, 2, M)))
        state = as_planes(signal((*shape, 2, M)))
        kernels = bench.backend.kernels
        found = kernels.carries(*(bench.array(v) for v in (a, drive, state)), scan=kernels.scan)
        expected = chunks.carries(a, drive, state)
        # Planes of sizes, the same for both: the recurrence with exact coefficients rounds product and sum per step.
        sizes = (np.repeat(np.hypot(*np.moveaxis(v, -2, 0))[..., None, :], 2, axis=-2) for v in (drive, state))
        size = _majorant(np.abs(a), *sizes)
        error = _majorant(np.abs(a), 2 * size[0], 2 * size[0][..., 0, 0, :, :] * 0)
        for name, x, y, allowed in zip(("entering", "final"), found, expected, error, strict=True):
            allowed = tolerance.FACTOR * np.finfo(bench.dtype).eps * (allowed + size[name == "final"])
            yield compare(f"{label} {name}", bench.host(x), y, allowed)


def _majorant(a: NDArray, drive: NDArray, state: NDArray) -> tuple[NDArray, NDArray]:
    """The recurrence of carries on moduli, each in both planes."""
    moduli = (v * np.array([1.0, 0.0])[:, None] for v in (drive, state))
    entering, final = (np.repeat(v[..., :1, :], 2, axis=-2) for v in chunks.carries(a, *moduli))
    return entering, final
