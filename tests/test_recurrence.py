"""Recurrences against the linear system that all states solve together: (I - shifted transitions) x = drive."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from ptd.recurrence import LowRankTransition, scan, scan_low_rank

LENGTHS = [1, 2, 7, 12, 31]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 2)) @ [1, 1j]


def all_states(transitions: np.ndarray, drive: np.ndarray, start: np.ndarray) -> np.ndarray:
    """x (L, M) with x_k = transitions_k x_{k-1} + drive_k, from one block-bidiagonal solve."""
    L, M = drive.shape
    system = np.eye(L * M, dtype=complex)
    below = scipy.linalg.block_diag(*transitions[1:]) if L > 1 else np.zeros((0, 0))
    system[M:, : (L - 1) * M] -= below
    right = drive.astype(complex)
    right[0] += transitions[0] @ start
    return np.linalg.solve(system, right.ravel()).reshape(L, M)


def diagonals(Lambda_bar: np.ndarray) -> np.ndarray:
    return Lambda_bar[..., None] * np.eye(Lambda_bar.shape[-1])


@pytest.fixture(scope="module")
def Lambda_bar() -> np.ndarray:
    """Modes inside, on and at the centre of the unit circle."""
    return np.array([0.5 + 0.3j, -0.9, 1j, 0, 1])


@pytest.mark.parametrize("L", LENGTHS)
def test_scan_is_the_sum_of_powers(Lambda_bar, L):
    drive, start = draw(L, 5), draw(5, seed=1)
    k = np.arange(L)
    weights = np.tril(Lambda_bar[:, None, None] ** np.maximum(k[:, None] - k, 0))  # (M, L, L)
    expected = np.einsum("mkj,jm->km", weights, drive) + Lambda_bar ** (k[:, None] + 1) * start
    assert_allclose(scan(Lambda_bar, drive, start), expected, rtol=1e-12)


@pytest.mark.parametrize("L", LENGTHS)
def test_scan_with_coefficients_per_step_solves_the_bidiagonal_system(L):
    Lambda_bar, drive, start = 0.7 * draw(L, 3, seed=2), draw(L, 3), draw(3, seed=1)
    expected = all_states(diagonals(Lambda_bar), drive, start)
    assert_allclose(scan(Lambda_bar, drive, start), expected, rtol=1e-12)


def test_scan_starts_from_zero_by_default(Lambda_bar):
    assert np.array_equal(scan(Lambda_bar, draw(4, 5)), scan(Lambda_bar, draw(4, 5), np.zeros(5)))


def test_reset_forgets_everything_before_it(Lambda_bar):
    drive, start = draw(6, 5), draw(5, seed=1)
    resets = np.array([False, False, True, False, True, True])
    kept = np.where(resets[:, None], 0, Lambda_bar)
    assert_allclose(scan(Lambda_bar, drive, start, resets), all_states(diagonals(kept), drive, start), rtol=1e-12)


def test_reset_at_the_first_sample_forgets_the_initial_state(Lambda_bar):
    resets = np.array([True, False, False])
    assert np.array_equal(scan(Lambda_bar, draw(3, 5), draw(5), resets), scan(Lambda_bar, draw(3, 5)))


def test_scan_of_a_batch_is_the_batch_of_scans(Lambda_bar):
    drive, start, resets = draw(2, 3, 4, 5), draw(2, 3, 5), np.random.default_rng(0).random((2, 3, 4)) < 0.4
    batched = scan(Lambda_bar, drive, start, resets)
    assert np.array_equal(batched[1, 2], scan(Lambda_bar, drive[1, 2], start[1, 2], resets[1, 2]))


# --- diagonal plus low rank


@pytest.fixture(scope="module", params=[(1, True), (1, False), (2, True), (2, False)], ids=str)
def transition(request) -> LowRankTransition:
    """Two features, P = 3 modes."""
    rank, conj_sym = request.param
    return LowRankTransition(0.5 * draw(2, 3), 0.3 * draw(2, 3, rank, seed=1), draw(2, 3, rank, seed=2), conj_sym)


def dense(transition: LowRankTransition, feature: int) -> np.ndarray:
    """The matrix that acts on x, or on x and its conjugate."""
    parts = (transition.diagonal[feature], transition.left[feature], transition.right[feature])
    if transition.conj_sym:
        parts = (np.concatenate([part, part.conj()]) for part in parts)
    diagonal, left, right = parts
    return np.diag(diagonal) - left @ right.conj().T


def stacked(x: np.ndarray, conj_sym: bool) -> np.ndarray:
    return np.concatenate([x, x.conj()], axis=-1) if conj_sym else x


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("feature", [0, 1])
def test_low_rank_scan_is_the_recurrence_of_its_dense_matrix(transition, feature, L):
    drive, start = draw(L, 2, 3), draw(2, 3, seed=1)
    matrices = np.broadcast_to(dense(transition, feature), (L, *dense(transition, feature).shape))
    of_drive, of_start = (stacked(x[..., feature, :], transition.conj_sym) for x in (drive, start))
    expected = all_states(matrices, of_drive, of_start)[:, :3]
    found = scan_low_rank(transition, drive, start)[:, feature]
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


def test_low_rank_scan_with_coefficients_per_step_uses_those_of_each_step():
    steps = LowRankTransition(0.5 * draw(4, 2, 3), 0.3 * draw(4, 2, 3, 1), draw(4, 2, 3, 1, seed=2), False)
    drive, start = draw(4, 2, 3), draw(2, 3, seed=1)
    matrices = diagonals(steps.diagonal[:, 1]) - steps.left[:, 1] @ steps.right[:, 1].conj().mT
    expected = all_states(matrices, drive[:, 1], start[1])
    assert_allclose(scan_low_rank(steps, drive, start)[:, 1], expected, rtol=1e-12)


def test_low_rank_scan_split_by_a_reset_is_two_scans(transition):
    drive, start = draw(5, 2, 3), draw(2, 3, seed=1)
    whole = scan_low_rank(transition, drive, start, np.array([False, False, True, False, False]))
    assert np.array_equal(whole[:2], scan_low_rank(transition, drive[:2], start))
    assert np.array_equal(whole[2:], scan_low_rank(transition, drive[2:]))


def test_low_rank_scan_of_a_batch_is_the_batch_of_scans(transition):
    drive = draw(2, 3, 4, 2, 3)
    assert np.array_equal(scan_low_rank(transition, drive)[1, 2], scan_low_rank(transition, drive[1, 2]))
