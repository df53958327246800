"""The chunked form of diagonal layers against their scan, and complex numbers as pairs against complex numbers."""

from __future__ import annotations

import dataclasses
import operator

import array_api_compat.numpy as xp
import dense
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ptd import DSS, S4, S4D, S5, chunks
from ptd.arrays import scale
from ptd.kernels import Kernels
from ptd.pairs import Pair

LAYERS = {
    "s5": S5(3, 6, blocks=3),
    "s5 bilinear, all modes, no D": S5(2, 5, discretization="bilinear", conj_sym=False, skip=False),
    "s4d": S4D(2, 5),
    "s4d shared": S4D(3, 4, shared=True, discretization="bilinear"),
    "dss-softmax": DSS(2, 3, kernel_length=7),
    "s4": S4(2, 5),
    "s4, all modes, rank 2": S4(3, 3, conj_sym=False, rank=2, shared=False),
}
T = 4
KERNELS = Kernels(chunk_length=lambda layer, L: min(T, L))


@pytest.fixture(scope="module", params=LAYERS.values(), ids=LAYERS)
def layer(request):
    return request.param


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def assert_same(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(initial=0), 1))


@pytest.mark.parametrize("L", [1, 3, 4, 5, 8, 17])
@pytest.mark.parametrize("lengths", [None, (0, 1), (4, 3)])
def test_chunked_run_with_a_state_equals_the_scan(layer, L, lengths):
    params, u, state = dense.parameters(layer), draw(2, L, layer.d_model), draw(*layer.state_shape((2,)), seed=1)
    lengths = None if lengths is None else np.minimum(lengths, L)
    call = {"state": state, "lengths": lengths, "return_state": True, "step_scale": 0.5}
    found = layer.apply(params, u, form="chunked", kernels=KERNELS, **call)
    assert_same(found, layer.apply(params, u, form="scan", **call))


@pytest.mark.parametrize("lengths", [None, (11, 6)])
@pytest.mark.parametrize("batch", [(2,), (3, 2)])
def test_chunked_run_both_ways_equals_the_scan(layer, batch, lengths):
    layer = dataclasses.replace(layer, bidirectional=True)
    params, u = dense.parameters(layer), draw(*batch, 11, layer.d_model)
    lengths = None if lengths is None else np.broadcast_to(lengths, batch)
    found = layer.apply(params, u, form="chunked", kernels=KERNELS, lengths=lengths, return_state=True)
    assert_same(found, layer.apply(params, u, form="scan", lengths=lengths, return_state=True))


def test_chunked_run_of_no_sequence_is_empty(layer):
    y, end = layer.apply(dense.parameters(layer), np.zeros((0, 9, layer.d_model)), form="chunked", return_state=True)
    assert y.shape == (0, 9, layer.d_model)
    assert end.shape == layer.state_shape((0,))


def test_chunk_length_never_exceeds_the_sequence(layer):
    assert [chunks.chunk_length(layer, L) for L in (1, 2)] == [1, 2]
    assert 4 <= chunks.chunk_length(layer, 10**6) <= 64


def test_chunked_run_both_ways_refuses_a_state():
    layer = S5(2, 4, bidirectional=True)
    with pytest.raises(ValueError, match=r"form: expected 'scan' for a bidirectional layer with a state"):
        layer.apply(dense.parameters(layer), np.zeros((3, 2)), form="chunked", state=np.zeros(layer.state_shape()))


# --- pairs


@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv])
@pytest.mark.parametrize("kind", ["pair", "number"])
def test_arithmetic_of_pairs_is_that_of_complex_numbers(f, kind):
    x, y = draw(3, 2) @ [1, 1j], draw(3, 2, seed=1) @ [1, 1j]
    pair = Pair(x.real, x.imag, xp)
    other, expected = {
        "pair": (Pair(y.real, y.imag, xp), y),
        "number": (0.3, 0.3),
    }[kind]
    found, found_right = f(pair, other), f(other, pair)
    assert_same([found.re + 1j * found.im, found_right.re + 1j * found_right.im], [f(x, expected), f(expected, x)])


def test_functions_of_pairs_are_those_of_complex_numbers():
    x = draw(2, 3, 4, 2) @ [1, 1j]
    pair, y = Pair(x.real, x.imag, xp), draw(2, 3, 4, seed=1)
    names = pair.__array_namespace__()
    assert_allclose(names.abs(pair), np.abs(x), rtol=1e-15)
    for found, expected in [
        (names.exp(pair), np.exp(x)),
        (names.conj(pair), np.conj(x)),
        (names.sum(pair, axis=-1), x.sum(axis=-1)),
        (names.concat([pair, pair], axis=-1), np.concatenate([x, x], axis=-1)),
        (names.where(x.real > 0, pair, names.ones_like(pair)), np.where(x.real > 0, x, 1)),
        (scale(pair, y), x * y),
    ]:
        assert_allclose(found.re + 1j * found.im, expected, rtol=1e-14, atol=1e-15)
    product = pair[0].matmul(pair[0].T)
    assert_allclose(product.re + 1j * product.im, x[0] @ x[0].T, rtol=1e-14)
    assert_allclose(names.fft.irfft(pair, n=6), np.fft.irfft(x, n=6), rtol=1e-14, atol=1e-15)
    assert pair.dtype == np.complex128


@pytest.mark.parametrize("T", [1, 2, 5, 8, 13])
def test_orbits_are_powers_one_by_one(T):
    rng = np.random.default_rng(T)
    A, row, columns = 0.5 * rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3)), rng.standard_normal((2, 3, 2))
    rows, moved, whole = chunks.orbits(A, row, columns, T)
    powers = [np.linalg.matrix_power(A, t) for t in range(T + 1)]
    assert_allclose(rows, np.stack([np.einsum("hi,hij->hj", row, power) for power in powers[:-1]], axis=1))
    assert_allclose(moved, np.stack([np.moveaxis(power @ columns, 2, 1) for power in powers[1:]], axis=-1))
    assert_allclose(whole, powers[-1])
