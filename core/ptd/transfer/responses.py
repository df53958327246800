"""Frequency responses of diagonal, diagonal-plus-low-rank and dense state-space systems.

Continuous time, x' = A x + B u, y = C x, omega in rad per unit time:
    G(i omega) = C (i omega I - A)^{-1} B
Discrete time (step given), x_k = A_bar x_{k-1} + B_bar u_k, y_k = C x_k, theta in rad per sample;
y_k contains u_k:
    G(e^{i theta}) = sum_k C A_bar^k B_bar e^{-i theta k} = C (I - e^{-i theta} A_bar)^{-1} B_bar

Each response is a scalar times C (a I - b A)^{-1} B. Continuous time: (a, b) = (i omega, 1). Bilinear rule:
(1 - 1/z, (1 + 1/z) step/2). Zero-order hold: (1, 1/z) on the discretised pair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import expm, schur

from .. import checks
from ..discretization import bilinear, zoh
from . import arguments

Array = NDArray[Any]
RULES = {"zoh": zoh, "bilinear": bilinear}


def diagonal_response(
    Lambda: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    omega: ArrayLike,
    *,
    step: ArrayLike | None = None,
    discretization: str = "zoh",
    conj_sym: bool = False,
) -> Array:
    """Frequency response of a diagonal system (S4D eq. 5): sum_k C_k B_k / (i omega - Lambda_k).

    Zero-order hold (S5 eq. 6): Lambda_bar = exp(Lambda step), B_bar = (Lambda_bar - 1)/Lambda B. Bilinear
    (S4 eq. 3): Lambda_bar = (1 + Lambda step/2)/(1 - Lambda step/2), B_bar = step B/(1 - Lambda step/2).

    Args:
        Lambda: modes (P,), complex, in rad per unit time; no mode may equal i omega.
        B: input column (P,) or matrix (P, m).
        C: output row (P,) or matrix (p, P); used as it is, not conjugated.
        omega: real frequencies, any shape: rad per unit time, or with a step theta in rad per sample.
        step: None for continuous time, else time per sample, positive: one number or one per mode (P,).
        discretization: "zoh" or "bilinear"; read only with a step.
        conj_sym: the P modes stand for themselves and their conjugates (B and C likewise).

    Returns:
        Complex array of shape omega.shape, then (p,) if C is a matrix, then (m,) if B is a matrix.

    Raises:
        ValueError: shapes disagree, a value is not finite, a step is not positive, an unknown discretization,
            a mode on the frequency axis at one of omega.

    >>> diagonal_response([-1.0], [1.0], [2.0], [0.0, 1.0]).round(3).tolist()
    [(2+0j), (1-1j)]
    """
    Lambda, omega = arguments.modes("Lambda", Lambda), arguments.frequencies(omega)
    B, C = arguments.columns("B", B, len(Lambda)), arguments.rows("C", C, len(Lambda))
    if conj_sym:  # real input and output: G(i omega) = G_half(i omega) + conj(G_half(-i omega))
        plus, minus = (
            diagonal_response(Lambda, B, C, w, step=step, discretization=discretization) for w in (omega, -omega)
        )
        return plus + minus.conj()
    distances, gain = _diagonal_distances(Lambda, omega[..., None], step, discretization)
    return _contract(gain * _reciprocal(distances), B, C)


def dplr_response(
    Lambda: ArrayLike,
    P: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    omega: ArrayLike,
    *,
    step: float | None = None,
    discretization: str = "zoh",
    conj_sym: bool = False,
) -> Array:
    """Frequency response of A = diag(Lambda) - P P^* (S4 sec. 3, appendix C.3), by the Woodbury identity.

    (a - b A)^{-1} = D - b D P (I + b P^* D P)^{-1} P^* D with D = (a - b diag(Lambda))^{-1}, at O(N r^2) per
    frequency. Zero-order hold has no such form: there the dense matrix is built, O(N^3) once.

    Args:
        Lambda: normal part's eigenvalues (N,), complex; none may equal i omega (`dense_response` can do that).
        P: low-rank factor, column (N,) or matrix (N, r).
        B: input column (N,) or matrix (N, m), in the same basis.
        C: output row (N,) or matrix (p, N); used as it is, not conjugated.
        omega: real frequencies, any shape: rad per unit time, or with a step theta in rad per sample.
        step: None for continuous time, else time per sample, one positive number.
        discretization: "zoh" or "bilinear"; read only with a step.
        conj_sym: the N modes stand for themselves and their conjugates (P, B and C likewise; P^* sums over both).

    Returns:
        Complex array of shape omega.shape, then (p,) if C is a matrix, then (m,) if B is a matrix.

    Raises:
        ValueError: shapes disagree, a value is not finite, a step is not positive, an unknown discretization,
            a mode on the frequency axis at one of omega.

    >>> dplr_response([0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0]).round(3).tolist()
    [(0.5-0.5j)]
    """
    Lambda, omega = arguments.modes("Lambda", Lambda), arguments.frequencies(omega)
    B, C = arguments.columns("B", B, len(Lambda)), arguments.rows("C", C, len(Lambda))
    P = _columns(arguments.columns("P", P, len(Lambda)))
    if conj_sym:
        Lambda, P, B = (both_halves(x, 0) for x in (Lambda, P, B))
        C = both_halves(C, -1)
    if _is_zoh(step, discretization):
        return dense_response(np.diag(Lambda) - P @ P.conj().T, B, C, omega, step=step)
    a, b, gain = pencil(omega, step)
    D = _reciprocal(a[..., None] - b[..., None] * Lambda)
    PDP = np.einsum("kr,...k,kq->...rq", P.conj(), D, P)
    inner = np.eye(P.shape[1]) + b[..., None, None] * PDP
    B2, C2 = _columns(B), _rows(C)
    correction = np.linalg.solve(inner, np.einsum("kr,...k,km->...rm", P.conj(), D, B2))
    correction = np.einsum("pk,...k,kr->...pr", C2, D, P) @ correction
    full = np.einsum("pk,...k,km->...pm", C2, D, B2) - b[..., None, None] * correction
    return _like(full * gain[..., None, None], B, C)


def dense_response(
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    omega: ArrayLike,
    *,
    step: float | None = None,
    discretization: str = "zoh",
) -> Array:
    """Frequency response C (i omega I - A)^{-1} B of any square matrix, through one complex Schur form.

    No eigenvectors are formed, so a defective or nearly defective A (HiPPO) is as good as any: the error is
    that of a backward-stable solve. Cost O(N^3) once and O(N^2 m) per frequency.

    Args:
        A: state matrix (N, N), real or complex.
        B: input column (N,) or matrix (N, m).
        C: output row (N,) or matrix (p, N); used as it is, not conjugated.
        omega: real frequencies, any shape: rad per unit time, or with a step theta in rad per sample.
        step: None for continuous time, else time per sample, one positive number.
        discretization: "zoh" (exponential of A step) or "bilinear"; read only with a step.

    Returns:
        Complex array of shape omega.shape, then (p,) if C is a matrix, then (m,) if B is a matrix.

    Raises:
        ValueError: shapes disagree, a value is not finite, a step is not positive, an unknown discretization,
            a mode on the frequency axis at one of omega.

    >>> dense_response([[0.0, 1.0], [0.0, 0.0]], [0.0, 1.0], [1.0, 0.0], [2.0]).real.round(3).tolist()
    [-0.25]
    """
    A, omega = arguments.square("A", A), arguments.frequencies(omega)
    B, C = arguments.columns("B", B, len(A)), arguments.rows("C", C, len(A))
    if _is_zoh(step, discretization):
        A, B = _dense_zoh(A, B, arguments.one_step(step))
        z = np.exp(1j * omega)
        a, b, gain = np.ones_like(z), 1 / z, np.ones_like(z)
    else:
        a, b, gain = pencil(omega, step)
    T, Q = schur(A, output="complex")
    full = triangular_response(T, Q.conj().T @ _columns(B), _rows(C) @ Q, a.ravel(), b.ravel())
    return _like((full * gain.ravel()[:, None, None]).reshape(*omega.shape, *full.shape[1:]), B, C)


def triangular_response(T: Array, B: Array, C: Array, a: Array, b: Array) -> Array:
    """C (a I - b T)^{-1} B for upper triangular T, B (N, m), C (p, N), 1-d a and b: shape (len(a), p, m)."""
    N = len(T)
    X = np.empty((N, len(a), B.shape[1]), dtype=complex)
    for i in reversed(range(N)):  # back substitution, all shifts at once
        tail = np.tensordot(T[i, i + 1 :], X[i + 1 :], 1)
        X[i] = (B[i] + b[:, None] * tail) * _reciprocal(a - b * T[i, i])[:, None]
    return np.moveaxis(np.tensordot(C, X, 1), 0, 1)


def pencil(omega: Array, step: float | None) -> tuple[Array, Array, Array]:
    """Coefficients a, b and scalar gain of C (a I - b A)^{-1} B: continuous time, or bilinear with a step.

    The bilinear form is finite at theta = pi, where s = (2i/step) tan(theta/2) is not.
    """
    if step is None:
        return 1j * omega, np.ones_like(omega), np.ones_like(omega)
    h, delay = arguments.one_step(step), np.exp(-1j * omega)
    return 1 - delay, (1 + delay) * (h / 2), np.full(omega.shape, h)


def both_halves(x: Array, axis: int) -> Array:
    """x with its conjugates after it."""
    return np.concatenate([x, x.conj()], axis=axis)


def discretized_modes(Lambda: Array, step: ArrayLike, discretization: str) -> tuple[Array, Array]:
    """Lambda_bar (P,) and the factor B_bar / B (P,) of diagonal modes, for a scalar step or one per mode."""
    checks.choice("discretization", discretization, RULES)
    return RULES[discretization](Lambda.astype(complex), arguments.steps(step, len(Lambda)))


def _is_zoh(step: Any, discretization: str) -> bool:
    if step is not None:
        checks.choice("discretization", discretization, RULES)
    return step is not None and discretization == "zoh"


def _reciprocal(distance: Array) -> Array:
    if not distance.all():
        raise checks.fail("omega", "frequencies off the poles", "one that equals a mode's", "move it aside")
    return 1 / distance


def _diagonal_distances(
    Lambda: Array, omega: Array, step: ArrayLike | None, discretization: str
) -> tuple[Array, Array]:
    """a - b Lambda of every mode, and the gain: differences of numbers near 1 by expm1, which slow modes need."""
    if step is None:
        return 1j * omega - Lambda, np.ones(1)
    steps = arguments.steps(step, len(Lambda))
    if _is_zoh(step, discretization):
        _, gain = discretized_modes(Lambda, step, discretization)
        return -np.expm1(Lambda * steps - 1j * omega), gain
    a = -np.expm1(-1j * omega)
    return a - (2 - a) * (steps / 2) * Lambda, steps


def _dense_zoh(A: Array, B: Array, step: float) -> tuple[Array, Array]:
    # exp of the augmented matrix gives the integral of exp(A t) B without A^{-1}: A may be singular
    N, columns = len(A), _columns(B)
    augmented = np.zeros((N + columns.shape[1],) * 2, dtype=np.result_type(A, B))
    augmented[:N, :N], augmented[:N, N:] = A, columns
    bar = expm(step * augmented)
    return bar[:N, :N], bar[:N, N:].reshape(B.shape)


def _contract(kernel: Array, B: Array, C: Array) -> Array:
    return _like(np.einsum("pk,...k,km->...pm", _rows(C), kernel, _columns(B), optimize=True), B, C)


def _like(full: Array, B: Array, C: Array) -> Array:
    full = full if B.ndim == 2 else full[..., 0]
    return full if C.ndim == 2 else full[(..., 0, slice(None)) if B.ndim == 2 else (..., 0)]


def _columns(B: Array) -> Array:
    return B if B.ndim == 2 else B[:, None]


def _rows(C: Array) -> Array:
    return C if C.ndim == 2 else C[None, :]
