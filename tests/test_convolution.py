"""The convolution view against direct sums and powers of dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from ptd.convolution import (
    cauchy,
    causal_convolution,
    causal_convolution_direct,
    matrix_power,
    mixing_convolution,
    powers,
    solution_of_small,
    vandermonde,
)
from ptd.discretization import bilinear_low_rank

LENGTHS = [1, 2, 3, 8, 13, 64]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 2)) @ [1, 1j]


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Within 1e-12 of the largest entry: an FFT spreads its rounding evenly."""
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max())


def toeplitz(kernel: np.ndarray) -> np.ndarray:
    """The lower triangular matrix of a causal convolution."""
    return scipy.linalg.toeplitz(kernel, np.zeros_like(kernel))


# --- kernels


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("P", [1, 5])
def test_vandermonde_is_the_sum_of_powers(P, L):
    weights, Lambda_bar = draw(3, P), np.exp(-np.abs(draw(3, P, seed=1)) + 1j)
    expected = (weights[:, :, None] * Lambda_bar[:, :, None] ** np.arange(L)).sum(axis=1).real
    assert close(vandermonde(weights, Lambda_bar, L), expected)


def test_vandermonde_broadcasts_over_leading_axes():
    weights, Lambda_bar = draw(2, 3, 4), 0.5 * draw(3, 4, seed=1)
    assert np.array_equal(vandermonde(weights, Lambda_bar, 6)[1], vandermonde(weights[1], Lambda_bar, 6))


@pytest.mark.parametrize("L", LENGTHS)
def test_powers_are_powers(L):
    Lambda_bar = np.array([0, 1, -0.999, 0.6 + 0.8j, 1e-200])
    assert_allclose(powers(Lambda_bar, L), Lambda_bar[:, None] ** np.arange(L), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("exponent", [1, 2, 3, 8, np.int64(13)])
def test_matrix_power_is_the_repeated_product(exponent):
    A = 0.4 * draw(2, 3, 3)
    assert_allclose(matrix_power(A, exponent), np.linalg.matrix_power(A, exponent), rtol=1e-12)


@pytest.fixture(
    scope="module",
    params=[(1, 4, True), (1, 4, False), (2, 3, True), (2, 3, False), (1, 1, True)],
    ids="rank {0[0]}, {0[1]} modes, conj_sym {0[2]}".format,
)
def system(request):
    """Lambda (H, N), P (H, N, r), B and C (H, N), step (H, 1) and conj_sym, with H = 2."""
    rank, N, conj_sym = request.param
    Lambda = -0.5 + 3j * np.random.default_rng(rank).standard_normal((2, N))
    return Lambda, draw(2, N, rank), draw(2, N, seed=1), draw(2, N, seed=2), np.array([[0.1], [0.02]]), conj_sym


def impulse_response(Lambda, P, B, C, step, conj_sym, L) -> np.ndarray:
    """Re C A_bar^l B_bar from the dense bilinear rule, one feature."""
    if conj_sym:
        Lambda, P, B, C = (np.concatenate([x, x.conj()]) for x in (Lambda, P, B, C))
    half = step / 2 * (np.diag(Lambda) - P @ P.conj().T)
    A_bar = np.linalg.solve(np.eye(len(B)) - half, np.eye(len(B)) + half)
    x = np.linalg.solve(np.eye(len(B)) - half, step * B)
    return np.array([(C @ np.linalg.matrix_power(A_bar, k) @ x).real for k in range(L)])


@pytest.mark.parametrize("L", [*LENGTHS, 1000, 1001])
def test_cauchy_kernel_is_the_impulse_response(system, L):
    *values, conj_sym = system
    Lambda, P, B, C, step = values
    transition, _ = bilinear_low_rank(Lambda, P, B, step, conj_sym=conj_sym)
    expected = np.stack([impulse_response(*(v[h] for v in values), conj_sym, L) for h in range(2)])
    assert close(cauchy(transition, Lambda, P, B, C, step, L), expected)


def test_cauchy_kernel_of_several_input_columns_is_one_kernel_each(system):
    Lambda, P, _, C, step, conj_sym = system
    B = draw(3, *Lambda.shape, seed=5)
    transition, _ = bilinear_low_rank(Lambda, P, B[0], step, conj_sym=conj_sym)
    found = cauchy(transition, Lambda, P, B, C, step, 9)
    assert close(found[2], cauchy(transition, Lambda, P, B[2], C, step, 9))


def test_cauchy_kernel_of_a_slow_mode_keeps_its_digits():
    """At z = 1, where S4's form divides 0 by 0, a rounded A_bar knows Lambda step to eps / |Lambda step| = 2e-9."""
    Lambda, P, one = np.full((1, 1), -1e-4 + 0j), np.zeros((1, 1, 1), complex), np.ones((1, 1), complex)
    step = np.full((1, 1), 1e-3)
    transition, _ = bilinear_low_rank(Lambda, P, one, step, conj_sym=False)
    expected = impulse_response(Lambda[0], P[0], one[0], one[0], step[0, 0], False, 50)
    found = cauchy(transition, Lambda, P, one, one, step, 50)[0]
    assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("r", [1, 2])
def test_solution_of_small_solves_for_every_leading_axis(r):
    matrix, y = draw(5, r, r), draw(3, 5, r, seed=1)
    assert_allclose((matrix @ solution_of_small(matrix, y)[..., None])[..., 0], y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_solution_of_small_keeps_its_digits_beside_a_large_matrix_of_rank_1(order):
    """(I + s v v^*) x = v has v^* x = |v|^2/(1 + s |v|^2). Cofactors have it to s eps = 1e-8."""
    s, v = 1e8, np.array([0.6 + 0.3j, 1 - 0.5j])[order]
    x = solution_of_small(np.eye(2) + s * np.outer(v, v.conj()), v)
    size = np.vdot(v, v).real
    assert_allclose(np.vdot(v, x), size / (1 + s * size), rtol=1e-14)


# --- convolutions


@pytest.mark.parametrize("convolve", [causal_convolution, causal_convolution_direct])
@pytest.mark.parametrize("L", LENGTHS)
def test_causal_convolution_is_a_triangular_product_per_feature(convolve, L):
    u, K = draw(L, 3).real, draw(3, L, seed=1).real
    expected = np.stack([toeplitz(K[h]) @ u[:, h] for h in range(3)], axis=1)
    assert close(convolve(u, K), expected)


@pytest.mark.parametrize("convolve", [causal_convolution, causal_convolution_direct])
def test_causal_convolution_never_looks_ahead_nor_wraps_around(convolve):
    u = np.zeros((8, 1))
    u[-1] = 1
    y = convolve(u, np.ones((1, 8)))
    assert_allclose(y[:, 0], [0] * 7 + [1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("convolve", [causal_convolution, causal_convolution_direct])
def test_causal_convolution_of_a_batch_is_the_batch_of_convolutions(convolve):
    u, K = draw(2, 3, 7, 4).real, draw(4, 7, seed=1).real
    assert close(convolve(u, K)[1, 2], convolve(u[1, 2], K))


@pytest.mark.parametrize("L", LENGTHS)
def test_mixing_convolution_is_a_triangular_product_per_pair_of_features(L):
    u, K = draw(2, L, 3).real, draw(L, 4, 3, seed=1).real
    pairs = np.array([[toeplitz(K[:, i, j]) for j in range(3)] for i in range(4)])
    assert close(mixing_convolution(u, K), np.einsum("ijkl,blj->bki", pairs, u))
