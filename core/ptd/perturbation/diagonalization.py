"""A diagonalised matrix near a given one, with the evidence that it is near and well conditioned."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import schur

from .. import checks
from . import responses

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Diagonalization:
    """A + E = V diag(Lambda) V^{-1} with its evidence.

    For real A: E is real, Lambda ascends by imaginary part, conjugate pairs are exact conjugates in Lambda,
    in the columns of V and in the rows of V_inv, placed symmetrically; real modes are exactly real. The
    largest entry of each column of V is real and positive.

    Attributes:
        Lambda: eigenvalues (n,), complex, per unit of time.
        V: eigenvectors (n, n), columns of unit 2-norm.
        V_inv: V^{-1} (n, n).
        E: the perturbation (n, n), real for real A.
        B: the input column (n,) or matrix (n, m) that belongs to A + E: B itself, or B_rho for "closed-form";
            None where none was given.
        condition_number: kappa(V), 2-norm; inf where V is exactly singular.
        spectral_abscissa: max Re Lambda.
        backward_error: ||V diag(Lambda) V^{-1} - (A + E)||_2 / ||A + E||_2.
        perturbation_norm: ||E||_2.
        relative_perturbation_norm: ||E||_2 / ||A||_2 (0 for A = 0).
        deviation: sup_w ||(iw - A - E)^{-1} B' - (iw - A)^{-1} B||_2 / ||B||_2, B' the field B. Measured
            on a refined grid, so from below; inf where A + E is not stable; None without B or where A is not.
        deviation_bound: the paper's first-order bound (2 ln n + 4) ||E||_2 on `deviation`, for HiPPO-LegS
            with its own B (Yu et al. 2024 sec. 4); None elsewhere. Vacuous for practical sizes.
    """

    Lambda: Array
    V: Array
    V_inv: Array
    E: Array
    B: Array | None
    condition_number: float
    spectral_abscissa: float
    backward_error: float
    perturbation_norm: float
    relative_perturbation_norm: float
    deviation: float | None
    deviation_bound: float | None

    def half(self) -> tuple[Array, Array, Array]:
        """The modes with Im Lambda >= 0, enough for real signals: 2 Re(V_half @ (V_inv_half @ x)) = x.

        A real mode is its own conjugate and would count twice, so its column of V and row of V_inv are both
        divided by sqrt(2). P = (n + number of real modes) / 2.

        Returns:
            Lambda (P,), V (n, P) and V_inv (P, n), complex.

        Raises:
            ValueError: A is complex: its spectrum has no conjugate symmetry.

        >>> from ptd import hippo, perturb_then_diagonalize
        >>> Lambda, V, V_inv = perturb_then_diagonalize(*hippo.legs(5), cache=False).half()
        >>> x = np.arange(5.0)
        >>> bool(np.allclose(2 * (V @ (V_inv @ x)).real, x))
        True
        """
        if np.iscomplexobj(self.E):
            raise checks.fail("A", "a real matrix", "a complex one", "use all n modes: Lambda, V, V_inv")
        kept = self.Lambda.imag >= 0
        weight = np.where(self.Lambda[kept].imag == 0, np.sqrt(0.5), 1.0)
        return self.Lambda[kept], self.V[:, kept] * weight, self.V_inv[kept] * weight[:, None]


def diagonalize(A: Array, B: Array | None, E: Array, B_E: Array | None) -> Diagonalization:
    """The diagonalisation of A + E (n, n), whose input is B_E where A's is B (both (n,), (n, m) or None)."""
    M = A + E
    Lambda, V, V_inv = modes(M)
    norm_A, norm_E, norm_M = (float(np.linalg.norm(X, 2)) for X in (A, E, M))
    regular = bool(np.isfinite(V_inv).all())
    residual = float(np.linalg.norm((V * Lambda) @ V_inv - M, 2)) if regular else np.inf
    has_bound = B is not None and B_E is B and responses.is_legs(A, B)
    return Diagonalization(
        Lambda=Lambda,
        V=V,
        V_inv=V_inv,
        E=E,
        B=B_E,
        condition_number=float(np.linalg.cond(V)) if regular else np.inf,
        spectral_abscissa=float(Lambda.real.max()),
        backward_error=residual / norm_M if norm_M else 0.0,
        perturbation_norm=norm_E,
        relative_perturbation_norm=norm_E / norm_A if norm_A else 0.0,
        deviation=None if B is None or B_E is None else _measured(A, B, B_E, Lambda, V, V_inv),
        deviation_bound=float(2 * np.log(A.shape[0]) + 4) * norm_E if has_bound else None,
    )


def modes(M: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues, unit eigenvectors and inverse (n,), (n, n), (n, n): ordered, exactly symmetric for real M.

    V_inv is all NaN where V is exactly singular.
    """
    Lambda, V = unitary_modes(M) or (X.astype(complex) for X in np.linalg.eig(M))
    kept = np.flatnonzero(Lambda.imag >= 0) if np.isrealobj(M) else np.arange(Lambda.size)
    kept = kept[np.lexsort((Lambda[kept].real, Lambda[kept].imag))]
    Lambda, V = Lambda[kept], _fixed_phase(V[:, kept])
    if np.iscomplexobj(M):
        return Lambda, V, _inverse(V)
    pair = Lambda.imag > 0
    # [v, conj v] is sqrt(2) [Re v, Im v] times a unitary: a real matrix to invert, conjugate by construction
    real = np.hstack([V[:, ~pair].real, np.sqrt(2) * V[:, pair].real, np.sqrt(2) * V[:, pair].imag])
    singles, cosines, sines = np.split(_inverse(real), np.cumsum([np.sum(~pair), np.sum(pair)]))
    rows = (cosines - 1j * sines) / np.sqrt(2)
    return (
        np.concatenate([Lambda[pair].conj()[::-1], Lambda[~pair], Lambda[pair]]),
        np.hstack([V[:, pair].conj()[:, ::-1], V[:, ~pair], V[:, pair]]),
        np.vstack([rows.conj()[::-1], singles, rows]),
    )


def unitary_modes(M: Array) -> tuple[Array, Array] | None:
    """Eigenvalues (n,) and orthonormal eigenvectors (n, n) of a matrix that is normal to rounding, else None.

    By its Schur form, whose part off the diagonal (off 2 x 2 blocks a + b [[0, 1], [-1, 0]] for a real matrix) measures
    the departure from normality in first order. A general solver's vectors are not orthogonal where eigenvalues repeat.
    """
    size = np.abs(M).max()
    if size == 0:
        return np.zeros(len(M), complex), np.eye(len(M), dtype=complex)
    T, Q = schur(M / size, output="real" if np.isrealobj(M) else "complex")
    first = np.flatnonzero(np.diag(T, -1)) if np.isrealobj(M) else np.zeros(0, int)
    second, Lambda, V = first + 1, np.diag(T).astype(complex), Q.astype(complex)
    turn = (T[first, second] - T[second, first]) / 2
    Lambda[first], Lambda[second] = Lambda[first] + 1j * turn, Lambda[first] - 1j * turn
    V[:, first] = (Q[:, first] + 1j * Q[:, second]) / np.sqrt(2)
    V[:, second] = V[:, first].conj()
    if np.linalg.norm((V * Lambda) @ V.conj().T - M / size) > 10 * len(M) * np.finfo(float).eps * np.linalg.norm(T):
        return None
    return size * Lambda, V


def _fixed_phase(V: Array) -> Array:
    """Unit columns whose largest entry is real and positive: the phase is not left to the library."""
    V = V / np.linalg.norm(V, axis=0)
    top = np.take_along_axis(V, np.abs(V).argmax(axis=0)[None], axis=0)
    return V * (top.conj() / np.abs(top))


def _inverse(V: Array) -> Array:
    try:
        return np.linalg.inv(V)
    except np.linalg.LinAlgError:
        return np.full_like(V, np.nan)


def _measured(A: Array, B: Array, B_E: Array, Lambda: Array, V: Array, V_inv: Array) -> float | None:
    Lambda_A = np.linalg.eigvals(A)
    if Lambda_A.real.max() >= 0:
        return None
    if Lambda.real.max() >= 0 or not np.isfinite(V_inv).all():
        return np.inf
    B, B_E = B.reshape(A.shape[0], -1), B_E.reshape(A.shape[0], -1)
    # a resonance of A + E is as wide as its decay rate: without these points a grid would step over it
    resonances = Lambda.imag + np.outer([-1, -0.5, 0, 0.5, 1], Lambda.real)
    grid = responses.frequency_grid(A, B, Lambda_A, resonances, 300)
    perturbed, exact = responses.modal_response(Lambda, V, V_inv, B_E), responses.response(A, B)
    largest = responses.largest_difference(perturbed, exact, grid)
    return largest / float(np.linalg.norm(B, 2)) if largest else 0.0
