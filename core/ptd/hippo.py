"""HiPPO state matrices and their normal-plus-low-rank forms.

Conventions: the online approximation of u obeys x'(t) = A x(t) + B u(t) with real A (N, N) and B (N,);
indices are 0-based. Each A splits exactly as A = A_N - P P^T with A_N normal and P (N, r) real, r <= 2.
Sources: Gu et al. 2020 (HiPPO), Gu et al. 2022 (S4), Gu et al. 2023 (How to train your HiPPO).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import checks

Matrix = NDArray[np.float64]


def legs(N: int) -> tuple[Matrix, Matrix]:
    """Scaled-Legendre state matrix and input column (HiPPO-LegS; S4 eq. 2).

    A[i, j] = -sqrt((2i+1)(2j+1)) for i > j, -(i+1) for i = j, 0 above;  B[i] = sqrt(2i+1).

    Args:
        N: order, at least 1.

    Returns:
        A (N, N) and B (N,), float64.

    Raises:
        ValueError: N is not a positive integer.

    >>> A, B = legs(2)
    >>> A.round(3).tolist(), B.round(3).tolist()
    ([[-1.0, 0.0], [-1.732, -2.0]], [1.0, 1.732])
    """
    B = np.sqrt(2 * _orders(N) + 1)
    A = np.tril(np.outer(-B, B), -1) - np.diag(_orders(N) + 1)
    return A, B


def legt(N: int) -> tuple[Matrix, Matrix]:
    """Translated-Legendre state matrix and input column, window length 1 (HiPPO-LegT).

    A[i, j] = -sqrt((2i+1)(2j+1)) * (1 if j <= i else (-1)^(i-j));  B[i] = sqrt(2i+1).

    Args:
        N: order, at least 1.

    Returns:
        A (N, N) and B (N,), float64.

    Raises:
        ValueError: N is not a positive integer.

    >>> legt(2)[0].round(3).tolist()
    [[-1.0, 1.732], [-1.732, -3.0]]
    """
    n = _orders(N)
    B = np.sqrt(2 * n + 1)
    sign = np.where(n[:, None] >= n, 1.0, (-1.0) ** (n[:, None] - n))
    return -np.outer(B, B) * sign, B


def fout(N: int) -> tuple[Matrix, Matrix]:
    """Truncated-Fourier state matrix and input column, window length 1 (HiPPO-FouT).

    Basis order: 1, cos 1, sin 1, cos 2, sin 2, ... With p = (1, sqrt 2, 0, sqrt 2, 0, ...) the values of the
    basis at the window's end, A = S - 2 p p^T and B = 2 p, where S rotates the pair (cos k, sin k) at 2 pi k.
    For even N the last cosine has no sine: A then has one exactly zero eigenvalue. Prefer odd N.

    Args:
        N: order, at least 1.

    Returns:
        A (N, N) and B (N,), float64.

    Raises:
        ValueError: N is not a positive integer.

    >>> fout(3)[0].round(3).tolist()
    [[-2.0, -2.828, 0.0], [-2.828, -4.0, -6.283], [0.0, 6.283, 0.0]]
    """
    n = _orders(N)
    p = np.where(n % 2 == 1, np.sqrt(2.0), 0.0)
    p[0] = 1.0
    rotation = np.where(n[:-1] % 2 == 1, np.pi * (n[:-1] + 1), 0.0)
    return np.diag(rotation, -1) - np.diag(rotation, 1) - 2 * np.outer(p, p), 2 * p


def normal_plus_low_rank(measure: str, N: int) -> tuple[Matrix, Matrix, Matrix]:
    """Normal part, low-rank factor and input column of a HiPPO matrix (S4 theorem 1).

    A = A_N - P P^T with A_N A_N^T = A_N^T A_N. LegS: A_N = -I/2 + skew, rank 1. LegT: A_N skew, rank 2.
    FouT: A_N skew, rank 1.

    Args:
        measure: "legs", "legt" or "fout".
        N: order, at least 1.

    Returns:
        A_N (N, N), P (N, r) and B (N,), float64.

    Raises:
        ValueError: unknown measure, or N is not a positive integer.

    >>> A_N, P, B = normal_plus_low_rank("legs", 4)
    >>> bool(np.allclose(A_N - P @ P.T, legs(4)[0]))
    True
    """
    checks.choice("measure", measure, MEASURES)
    A, B = MEASURES[measure](N)
    P = B[:, None] / np.sqrt(2.0)
    if measure == "legt":  # B_i B_j cancels between orders of different parity, so each parity has its own column
        even = np.arange(N)[:, None] % 2 == 0
        P = np.sqrt(2.0) * np.concatenate([np.where(even, P, 0), np.where(even, 0, P)], axis=1)
    return A + P @ P.T, P, B


MEASURES = {"legs": legs, "legt": legt, "fout": fout}


def _orders(N: int) -> Matrix:
    checks.positive_integer("N", N)
    return np.arange(N, dtype=np.float64)
