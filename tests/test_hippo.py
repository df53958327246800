"""HiPPO matrices against the projections that define them (Gu et al. 2020, 2023) and theory.md's figures.

Each projection onto a window is written as an integral over the unit interval and taken by Gauss-Legendre
quadrature. The state equation then says: the projection of u' equals A times that of u, plus B u(now).
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import legendre
from numpy.testing import assert_allclose

from ptd import hippo

NODES, WEIGHTS = legendre.leggauss(60)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2


def legendre_basis(N: int, x: np.ndarray) -> np.ndarray:
    """sqrt(2n+1) P_n(2x - 1), orthonormal on the unit interval, (N, len(x))."""
    return (legendre.legvander(2 * x - 1, N - 1) * np.sqrt(2 * np.arange(N) + 1)).T


def fourier_basis(N: int, x: np.ndarray) -> np.ndarray:
    """1, sqrt 2 cos, sqrt 2 sin of 2 pi k x, (N, len(x))."""
    phase = 2 * np.pi * ((np.arange(N) + 1) // 2)[:, None] * x
    wave = np.where(np.arange(N)[:, None] % 2 == 1, np.cos(phase), np.sin(phase)) * np.sqrt(2)
    wave[0] = 1
    return wave


def project(basis: np.ndarray, signals: np.ndarray) -> np.ndarray:
    """Coefficients (N, number of signals) of signals sampled at the nodes."""
    return (basis * WEIGHTS) @ signals.T


@pytest.mark.parametrize("N", [1, 2, 5, 8])
def test_legs_moves_the_projection_onto_the_whole_past(N):
    """c(t) = int_0^1 u(t x) g(x) dx, so t c'(t) = int x u'(x) g(x) dx at t = 1, and that is A c + B u(1)."""
    A, B = hippo.legs(N)
    rate = np.arange(1, 7)[:, None]  # u(x) = e^{-rate x}: the identity holds for every signal
    u, du, now = np.exp(-rate * NODES), -rate * np.exp(-rate * NODES), np.exp(-rate[:, 0])
    basis = legendre_basis(N, NODES)
    moved = project(basis, NODES * du)
    assert_allclose(A @ project(basis, u) + B[:, None] * now, moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("N", [1, 2, 5, 8])
def test_legt_moves_the_projection_of_every_polynomial_below_its_order(N):
    """c(t) = int_0^1 u(t - 1 + x) g(x) dx, so c' = int u' g; exact where the window's start is reconstructed."""
    A, B = hippo.legt(N)
    degree = np.arange(N)[:, None]
    u, du = NODES**degree, degree * NODES ** np.maximum(degree - 1, 0)
    basis = legendre_basis(N, NODES)
    assert_allclose(A @ project(basis, u) + B[:, None], project(basis, du), rtol=0, atol=1e-12 * N**2)


@pytest.mark.parametrize("N", [1, 3, 7, 9])
def test_fout_moves_the_projection_up_to_the_error_of_its_reconstruction_at_the_jump(N):
    """c(t) = int_0^1 u(t - x) g(x) dx. At the jump a Fourier series gives the mean of both sides (Dirichlet):

    p^T c stands for (u(t) + u(t-1)) / 2, p = g(0). What FouT misses is exactly p times twice that error.
    """
    A, B = hippo.fout(N)
    rate = np.arange(1, 12)[:, None]
    u, du = np.exp(-rate * NODES), rate * np.exp(-rate * NODES)  # u(t) = e^{rate t} seen from t = 0
    now, before = np.ones(11), np.exp(-rate[:, 0])
    basis = fourier_basis(N, NODES)
    c, p = project(basis, u), fourier_basis(N, np.zeros(1))[:, 0]
    missed = 2 * p @ c - (now + before)
    assert_allclose(A @ c + np.outer(B, now) + np.outer(p, missed), project(basis, du), rtol=0, atol=1e-11)


@pytest.mark.parametrize("N", [1, 2, 3, 16, 33])
@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
def test_normal_plus_low_rank_form_is_exact(measure, N):
    A_N, P, B = hippo.normal_plus_low_rank(measure, N)
    A, B_hippo = hippo.MEASURES[measure](N)
    assert_allclose(A_N - P @ P.T, A, rtol=0, atol=1e-15 * np.abs(A).max())
    assert np.array_equal(B, B_hippo)


@pytest.mark.parametrize("N", [1, 2, 3, 16, 33])
@pytest.mark.parametrize(("measure", "diagonal", "rank"), [("legs", -0.5, 1), ("legt", 0, 2), ("fout", 0, 1)])
def test_normal_part_is_a_multiple_of_the_identity_plus_a_skew_matrix(measure, diagonal, rank, N):
    A_N, P, B = hippo.normal_plus_low_rank(measure, N)
    assert P.shape == (N, rank)
    assert_allclose(A_N + A_N.T, 2 * diagonal * np.eye(N), rtol=0, atol=1e-15 * (B @ B))


@pytest.mark.parametrize(("N", "norm"), [(8, 40.81), (16, 163.03), (32, 651.96), (64, 2607.65), (128, 10430.43)])
def test_norm_of_legs_has_the_published_value(N, norm):
    assert np.linalg.norm(hippo.legs(N)[0], 2) == pytest.approx(norm, abs=0.005)


def test_norm_of_legs_tends_to_two_n_squared_over_pi():
    assert np.linalg.norm(hippo.legs(256)[0], 2) == pytest.approx(2 * 256**2 / np.pi, rel=1e-4)


def spikes(N: int) -> np.ndarray:
    """Frequencies of the normal part of LegS, highest first."""
    A_N, _, _ = hippo.normal_plus_low_rank("legs", N)
    return np.linalg.eigvalsh(1j * (A_N + np.eye(N) / 2))[::-1]


@pytest.mark.parametrize(
    ("N", "spike"), [(8, 19.857), (16, 80.966), (32, 325.426), (64, 1303.27), (128, 5214.67), (256, 20860.2)]
)
def test_last_spike_of_the_normal_part_has_the_published_frequency(N, spike):
    assert spikes(N)[0] == pytest.approx(spike, rel=3e-5)


def test_spikes_of_order_32_have_the_published_frequencies():
    assert_allclose(spikes(32)[1:5], [107.09, 62.61, 43.01, 31.73], rtol=0, atol=0.005)


@pytest.mark.parametrize("N", [1, 4, 17])
def test_transfer_function_of_legs_is_one_minus_an_all_pass_like_product(N):
    """B^T (sI - A)^{-1} B = 1 - prod_j (s - j)/(s + j + 1) (theory.md sec. 3)."""
    A, B = hippo.legs(N)
    s = 1j * np.geomspace(0.1, 4 * N**2, 30)
    j = np.arange(N)[:, None]
    dense = np.linalg.solve(s[:, None, None] * np.eye(N) - A, B[:, None])[:, :, 0] @ B
    assert_allclose(dense, 1 - np.prod((s - j) / (s + j + 1), axis=0), rtol=1e-12)


def test_fout_of_even_order_has_an_eigenvalue_zero():
    assert np.abs(np.linalg.eigvals(hippo.fout(4)[0])).min() < 1e-12
