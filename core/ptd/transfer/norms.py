"""Resolvent norms, and H-infinity norms with a guarantee.

The H-infinity norm is found by level sets, never by a frequency grid: gamma is a singular value of G(i omega)
for some omega exactly if the Hamiltonian matrix of gamma has the eigenvalue i omega (Boyd & Balakrishnan
1990), and the points between such omega give a larger gamma (Bruinsma & Steinbuch 1990), with quadratic
convergence. What can fail is only the rounding of an eigenvalue solver, not the spacing of a grid.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import schur

from .. import checks
from . import arguments
from .responses import triangular_response

Array = NDArray[Any]
LEVELS = 60  # quadratic convergence takes 3 to 8


class Peak(NamedTuple):
    """Largest gain and where it is attained: rad per unit time, or rad per sample for a sampled system."""

    gain: float
    omega: float


def resolvent_norm(A: ArrayLike, s: ArrayLike) -> Array:
    """Spectral norm of the resolvent, ||(sI - A)^{-1}||_2 = 1/sigma_min(sI - A), for pseudospectra.

    Values above about 1/(eps ||A||_2) are lost in rounding: they mean "singular to working precision". Cost
    O(N^3) per point.

    Args:
        A: square matrix (N, N), real or complex.
        s: complex points, any shape.

    Returns:
        float64 array of the shape of s; inf at an exact eigenvalue.

    Raises:
        ValueError: A is not a finite square matrix, or s is not finite.

    >>> resolvent_norm([[0.0, 1.0], [0.0, 0.0]], [1.0, 0.0]).round(3).tolist()
    [1.618, inf]
    """
    A, s = arguments.square("A", A), arguments.points(s)
    chunk = max(1, 2**21 // A.size)  # bounds the memory of the stacked matrices
    smallest = [
        np.linalg.svd(points[:, None, None] * np.eye(len(A)) - A, compute_uv=False)[:, -1]
        for points in np.array_split(s.ravel(), -(-s.size // chunk) or 1)
    ]
    with np.errstate(divide="ignore"):
        return 1 / np.concatenate(smallest).reshape(s.shape)


def hinf_norm(A: ArrayLike, B: ArrayLike, C: ArrayLike, D: ArrayLike | None = None, *, rtol: float = 1e-8) -> Peak:
    """H-infinity norm sup_omega ||C (i omega I - A)^{-1} B + D||_2 of a stable system, and where.

    The gain returned is attained at the frequency returned (a lower bound), and no frequency gains more than
    (1 + rtol) times as much: the Hamiltonian matrix of that level has no crossing. Peaks of any sharpness are
    found. Each of the few levels costs one eigenvalue problem of order 2N.

    Args:
        A: state matrix (N, N), real or complex, all eigenvalues with Re < 0.
        B: input column (N,) or matrix (N, m).
        C: output row (N,) or matrix (p, N); used as it is, not conjugated.
        D: feedthrough (p, m), or None for none.
        rtol: relative gap allowed between the value and the supremum, in [1e-12, 1).

    Returns:
        Peak(gain, omega), omega in rad per unit time, nonnegative for a real system; inf if D attains it, 0 where
        the gain is 0.

    Raises:
        ValueError: shapes disagree, a value is not finite, A is not stable, rtol is out of range.
        RuntimeError: the level iteration did not settle.

    >>> gain, omega = hinf_norm([[0.0, 1.0], [-1.0, -0.002]], [0.0, 1.0], [1.0, 0.0])
    >>> round(gain, 3), round(omega, 3)
    (500.0, 1.0)
    """
    A = arguments.square("A", A)
    B = arguments.columns("B", B, len(A)).reshape(len(A), -1)
    C = arguments.rows("C", C, len(A)).reshape(-1, len(A))
    D = arguments.rows("D", np.zeros((len(C), B.shape[1])) if D is None else D, B.shape[1])
    checks.shape("D", D, (len(C), B.shape[1]), "(p, m) from C and B")
    checks.number("rtol", rtol, 1e-12, 1, "a number in [1e-12, 1)")
    check_stable("A", np.linalg.eigvals(A))
    if D.any():
        return _level_sets(A, B, C, D, rtol)
    # In units in which nothing is far from 1, since levels are squared; powers of two, which do not round.
    a, b, c = (_exponent(X) for X in (A, B, C))
    found = _level_sets(A * 2.0**-a, B * 2.0**-b, C * 2.0**-c, D, rtol)
    return Peak(math.ldexp(found.gain, b + c - a), found.omega * 2.0**a)


def _exponent(X: Array) -> int:
    return max(-1000, min(1000, math.frexp(float(np.abs(X).max()))[1]))


def _level_sets(A: Array, B: Array, C: Array, D: Array, rtol: float) -> Peak:
    T, Q = schur(A, output="complex")
    modes = np.diag(T)
    if not B.any() or not C.any():
        return Peak(float(np.linalg.norm(D, 2)), 0.0)
    triangle = T, Q.conj().T @ B, C @ Q
    # below the floor a response is rounding error of its own evaluation
    floor = np.finfo(float).eps * np.linalg.norm(B) * np.linalg.norm(C) / np.linalg.norm(A)
    best = max(Peak(float(np.linalg.norm(D, 2)), np.inf), _largest(triangle, D, np.append(modes.imag, 0)))
    is_real = all(map(np.isrealobj, (A, B, C, D)))
    for _ in range(LEVELS):
        level = max((1 + rtol) * best.gain, floor)
        # every eigenvalue's imaginary part is tried: no tolerance decides which ones are "on the axis"
        crossings = np.unique(np.linalg.eigvals(_hamiltonian(A, B, C, D, level)).imag)
        trial = _largest(triangle, D, np.concatenate([crossings, (crossings[1:] + crossings[:-1]) / 2]))
        if trial.gain <= level:
            gain, omega = max(best, trial)
            if not gain:  # at every frequency
                omega = 0.0
            return Peak(gain, abs(omega) if is_real else omega)
        best = trial
    raise RuntimeError(f"hinf_norm: level sets still rising after {LEVELS} levels at {best}; loosen rtol")


def _largest(triangle: tuple[Array, Array, Array], D: Array, omega: Array) -> Peak:
    responses = triangular_response(*triangle, 1j * omega, np.ones_like(omega)) + D
    gains = np.linalg.norm(responses, 2, axis=(1, 2))
    return Peak(float(gains.max()), float(omega[gains.argmax()]))


def _hamiltonian(A: Array, B: Array, C: Array, D: Array, level: float) -> Array:
    p, m = D.shape
    R = np.linalg.inv(level**2 * np.eye(m) - D.conj().T @ D)
    S = np.linalg.inv(level**2 * np.eye(p) - D @ D.conj().T)
    scale = np.sqrt(np.linalg.norm(B) / np.linalg.norm(C))
    B, C = B / scale, C * scale  # off-diagonal blocks of equal size
    F = A + B @ R @ D.conj().T @ C
    return np.block([[F, level * B @ R @ B.conj().T], [-level * C.conj().T @ S @ C, -F.conj().T]])


def check_stable(name: str, eigenvalues: Array) -> None:
    """Raise unless every eigenvalue of the matrix called name has a negative real part."""
    worst = float(eigenvalues.real.max())
    if worst >= 0:
        raise checks.fail(
            name,
            "eigenvalues with Re < 0",
            f"max Re = {worst:.3g}",
            "an unstable system has no H-infinity norm",
        )
