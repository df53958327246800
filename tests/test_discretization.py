"""Discretisation rules against 50 digits (mpmath), dense matrix exponentials and dense solves."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from ptd.discretization import SERIES_RADIUS, bilinear, bilinear_low_rank, phi_1, zoh
from ptd.recurrence import dense_transition, transition_on_planes

mpmath.mp.dps = 50
EPS = np.finfo(float).eps

MAGNITUDES = [1e-300, 1e-154, 1e-30, 1e-16, 1e-9, 1e-8, 1e-4, 0.01, 0.1, 0.3]
MAGNITUDES += [SERIES_RADIUS * (1 + offset) for offset in (-1e-3, -1e-15, 0, 1e-15, 1e-3)]
MAGNITUDES += [0.7, 1, 2, 2 * np.pi, 10, 20, 40]
DIRECTIONS = np.array([-1, 1j, -1j, -0.6 + 0.8j, -0.6 - 0.8j, -1e-3 + 1j, -1e-9 - 1j, -1 + 1e-9j])
STEP = 2.0**-7  # a power of two: Lambda step is z without rounding


@pytest.fixture(params=MAGNITUDES, ids="{:.6g}".format)
def z(request) -> np.ndarray:
    """Eight directions of the left half-plane, boundary included, at one magnitude."""
    return request.param * DIRECTIONS


def exact(function, *arguments: np.ndarray) -> np.ndarray:
    return np.array([complex(function(*map(mpmath.mpmathify, values))) for values in zip(*arguments, strict=True)])


def exact_phi_1(z: mpmath.mpc) -> mpmath.mpc:
    # 700 digits: (e^z - 1)/z loses 300 of them at |z| = 1e-300
    with mpmath.workdps(700):
        return (mpmath.exp(z) - 1) / z


def test_phi_1_is_accurate_to_a_few_ulp_everywhere(z):
    expected = exact(exact_phi_1, z)
    allowed = 4 * EPS * np.maximum(np.abs(expected), 1 / np.maximum(np.abs(z), 1))
    assert (np.abs(phi_1(z) - expected) <= allowed).all()


def test_derivative_of_phi_1_as_it_is_differentiated_is_accurate_outside_the_series():
    """Automatic differentiation forms (e^z - phi_1)/z: its cancellation is bounded by the series radius."""
    z = np.concatenate([magnitude * DIRECTIONS for magnitude in MAGNITUDES if magnitude >= SERIES_RADIUS])
    expected = exact(lambda z: (mpmath.exp(z) * (z - 1) + 1) / z**2, z)
    assert_allclose((np.exp(z) - phi_1(z)) / z, expected, rtol=1e-14)


def test_zoh_is_accurate_at_every_step(z):
    Lambda_bar, gain = zoh(z / STEP, np.array(STEP))
    expected = STEP * exact(exact_phi_1, z)
    assert_allclose(Lambda_bar, exact(mpmath.exp, z), rtol=1e-14)
    assert (np.abs(gain - expected) <= 4 * EPS * np.maximum(np.abs(expected), STEP / np.maximum(np.abs(z), 1))).all()


def test_bilinear_is_accurate_at_every_step(z):
    Lambda_bar, gain = bilinear(z / STEP, np.array(STEP))
    # near z = -2 the numerator 1 + z/2 cancels: the error is relative to 1
    assert_allclose(Lambda_bar, exact(lambda z: (1 + z / 2) / (1 - z / 2), z), rtol=0, atol=4 * EPS)
    assert_allclose(gain, STEP * exact(lambda z: 1 / (1 - z / 2), z), rtol=4 * EPS)


@pytest.mark.parametrize("rule", [zoh, bilinear])
def test_eigenvalue_zero_integrates_the_input(rule):
    Lambda_bar, gain = rule(np.zeros(1, complex), np.array(0.3))
    assert Lambda_bar.tolist() == [1]
    assert gain.tolist() == [0.3]


@pytest.mark.parametrize("rule", [zoh, bilinear])
def test_step_zero_holds_the_state(rule):
    Lambda_bar, gain = rule(np.array([-3 + 40j, 0]), np.array(0.0))
    assert Lambda_bar.tolist() == [1, 1]
    assert gain.tolist() == [0, 0]


@pytest.mark.parametrize("rule", [zoh, bilinear])
def test_arguments_broadcast(rule):
    Lambda_bar, gain = rule(np.full((3, 1), -1 + 1j), np.full((2, 1, 4), 0.1))
    assert Lambda_bar.shape == gain.shape == (2, 3, 4)


def test_zoh_is_the_exponential_of_the_augmented_matrix():
    Lambda, B, step = np.array([-0.5 + 3j, -2, -0.1 - 7j]), np.array([1, 2j, -1 + 1j]), 0.3
    Lambda_bar, gain = zoh(Lambda, np.array(step))
    augmented = np.zeros((4, 4), complex)
    augmented[:3, :3], augmented[:3, 3] = np.diag(Lambda), B
    dense = scipy.linalg.expm(step * augmented)
    assert_allclose(np.diag(Lambda_bar), dense[:3, :3], rtol=0, atol=1e-14)
    assert_allclose(gain * B, dense[:3, 3], rtol=1e-13)


# --- diagonal plus low rank


@pytest.fixture(scope="module", params=[1, 2], ids=["rank 1", "rank 2"])
def system(request):
    """Lambda (H, N), P (H, N, r), B (H, N) with H = 3, N = 5."""
    rng = np.random.default_rng(request.param)
    Lambda = -rng.uniform(0.1, 2, (3, 5)) + 5j * rng.standard_normal((3, 5))
    P = rng.standard_normal((3, 5, request.param, 2)) @ [1, 1j]
    return Lambda, P, rng.standard_normal((3, 5, 2)) @ [1, 1j]


def both_halves(x: np.ndarray, conj_sym: bool, axis: int) -> np.ndarray:
    return np.concatenate([x, x.conj()], axis=axis) if conj_sym else x


@pytest.mark.parametrize("conj_sym", [True, False])
@pytest.mark.parametrize("step", [1e-300, 1e-8, 0.1, 3.0])
def test_low_rank_transition_equals_the_dense_bilinear_rule(system, step, conj_sym):
    Lambda, P, B = system
    steps = np.array([[1.0], [0.5], [2.0]]) * step
    transition, B_bar = bilinear_low_rank(Lambda, P, B, steps, conj_sym=conj_sym)
    Lambda, B, P = (both_halves(x, conj_sym, axis) for x, axis in ((Lambda, 1), (B, 1), (P, 1)))
    identity = np.eye(Lambda.shape[1])
    half = steps[:, :, None] / 2 * (identity * Lambda[:, None, :] - P @ P.conj().mT)
    dense = np.linalg.solve(identity - half, identity + half)
    dense_B = np.linalg.solve(identity - half, (steps * B)[..., None])[:, : B_bar.shape[1], 0]
    assert_allclose(dense_transition(transition), dense, rtol=0, atol=1e-12 * np.abs(dense).max())
    assert_allclose(B_bar, dense_B, rtol=1e-12)


@pytest.mark.parametrize("conj_sym", [True, False])
def test_low_rank_transition_applies_its_dense_matrix(system, conj_sym):
    Lambda, P, B = system
    transition, _ = bilinear_low_rank(Lambda, P, B, np.full((3, 1), 0.1), conj_sym=conj_sym)
    x = np.random.default_rng(0).standard_normal((3, 5, 2)) @ [1, 1j]
    dense = dense_transition(transition) @ both_halves(x, conj_sym, 1)[..., None]
    assert_allclose(transition(x), dense[:, :5, 0], rtol=1e-12)


@pytest.mark.parametrize("conj_sym", [True, False])
def test_transition_on_planes_moves_real_and_imaginary_parts(system, conj_sym):
    Lambda, P, B = system
    transition, _ = bilinear_low_rank(Lambda, P, B, np.full((3, 1), 0.1), conj_sym=conj_sym)
    x = np.random.default_rng(0).standard_normal((3, 5, 2)) @ [1, 1j]
    planes = np.concatenate([x.real, x.imag], axis=1)
    moved = (transition_on_planes(transition) @ planes[..., None])[..., 0]
    assert_allclose(moved[:, :5] + 1j * moved[:, 5:], transition(x), rtol=1e-12)


def test_low_rank_transition_of_step_zero_is_the_identity(system):
    Lambda, P, B = system
    transition, B_bar = bilinear_low_rank(Lambda, P, B, np.zeros((3, 1)), conj_sym=True)
    assert np.array_equal(transition(B), B)
    assert not B_bar.any()
