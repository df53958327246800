"""Frequency responses and the measured transfer deviation of a perturbation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from .. import hippo
from ..transfer import legs_states

Array = NDArray[Any]
Response = Callable[[Array], Array]


def is_legs(A: Array, B: Array) -> bool:
    """Whether A (n, n) and B (n,) or (n, 1) are HiPPO-LegS, to nine digits."""
    A_legs, B_legs = hippo.legs(A.shape[0])
    return B.size == A.shape[0] and bool(np.allclose(A, A_legs, 1e-9) and np.allclose(B.ravel(), B_legs, 1e-9))


def response(A: Array, B: Array) -> Response:
    """The map w -> (iw - A)^{-1} B, shape (n, m, K) for w (K,), from A (n, n) and B (n, m)."""
    return legs_response(A.shape[0]) if is_legs(A, B) else schur_response(A, B)


def schur_response(A: Array, B: Array) -> Response:
    """`response` through one Schur form of A.

    Unitary similarity and substitution only: backward stable however ill-conditioned A's eigenvectors.
    """
    T, Z = scipy.linalg.schur(A, output="complex")
    rotated = Z.conj().T @ B

    def response(w: Array) -> Array:
        X = np.repeat(rotated[:, :, None], w.size, axis=2)
        for k in reversed(range(T.shape[0])):
            X[k] /= 1j * w - T[k, k]
            X[:k] += T[:k, k, None, None] * X[k]
        return np.tensordot(Z, X, axes=1)

    return response


def legs_response(n: int) -> Response:
    """`response` of HiPPO-LegS of order n by `legs_states`: no matrix, and every factor below 1 on s = iw."""
    return lambda w: legs_states(n, 1j * w).T[:, None, :]


def modal_response(Lambda: Array, V: Array, V_inv: Array, B: Array) -> Response:
    """The map w -> V (iw - Lambda)^{-1} V^{-1} B, shape (n, m, K) for w (K,)."""
    modes = (V_inv @ B)[:, :, None]
    return lambda w: np.tensordot(V, modes / (1j * w - Lambda[:, None])[:, None, :], axes=1)


def frequency_grid(A: Array, B: Array, Lambda_A: Array, others: Array, points: int) -> Array:
    """Frequencies where the response of a stable A varies: 0, its resonances, others, a logarithmic ladder.

    The ladder runs from a tenth of the slowest decay rate to three times ||A||_2. The response at -w is the
    conjugate of that at w for real A and B; else both signs are kept.
    """
    norm = np.linalg.norm(A, 2)
    ladder = np.geomspace(0.1 * max(np.abs(Lambda_A.real).min(), 1e-8 * norm), 3 * norm, points)
    grid = np.unique(np.concatenate([[0.0], ladder, np.abs(Lambda_A.imag), np.abs(others).ravel()]))
    return grid if np.isrealobj(A) and np.isrealobj(B) else np.union1d(grid, -grid)


def largest_difference(first: Response, second: Response, grid: Array) -> float:
    """max_w ||first(w) - second(w)||_2: the grid's eight highest local maxima are refined five times."""

    def difference(w: Array) -> Array:
        return np.linalg.norm(np.moveaxis(first(w) - second(w), 2, 0), 2, axis=(1, 2))

    values = difference(grid)
    best = float(values.max())
    padded = np.pad(values, 1, constant_values=-np.inf)
    peaks = np.flatnonzero((padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:]))
    peaks = peaks[np.argsort(-values[peaks], kind="stable")[:8]]
    left, right = grid[np.maximum(peaks - 1, 0)], grid[np.minimum(peaks + 1, grid.size - 1)]
    for _ in range(5):
        w = np.linspace(left, right, 9)
        values = difference(w.ravel()).reshape(w.shape)
        best = max(best, float(values.max()))
        top = values.argmax(axis=0)
        column = np.arange(peaks.size)
        left, right = w[np.maximum(top - 1, 0), column], w[np.minimum(top + 1, 8), column]
    return best
