"""The smooth objective of `perturb_then_diagonalize` and its exact gradients.

Every gradient G of a real function f of a matrix X means df = Re tr(G^H dX), for real and complex X alike.
M = A + E = V diag(Lambda) V^{-1} throughout, V with unit 2-norm columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Exponent of the p-norms that stand for a maximum: 2p = 16 is within n^(1/16) of it and still smooth.
SHARPNESS = 8


def ball(F: Array) -> tuple[Array, Callable[[Array], Array]]:
    """A point of the open unit ball of the 2-norm, smooth in F, and its pullback.

    E = F (I + F^H F)^{-1/2}: each singular value s of F becomes s / sqrt(1 + s^2). With F^H F = Z diag(w) Z^H
    and c = sqrt(1 + w), (I + F^H F)^{-1/2} has the divided differences -1 / (c_i c_j (c_i + c_j)), free of
    cancellation (Daleckii and Krein 1965).

    Args:
        F: any matrix (n, n), real or complex.

    Returns:
        E (n, n) and the map from the gradient for E to the gradient for F.
    """
    w, Z = np.linalg.eigh(F.conj().T @ F)
    c = np.sqrt(1 + np.maximum(w, 0))
    divided = -1 / (np.outer(c, c) * (c[:, None] + c))

    def pullback(G: Array) -> Array:
        S = Z @ (divided * (Z.conj().T @ (F.conj().T @ G) @ Z)) @ Z.conj().T
        return ((G @ Z) / c) @ Z.conj().T + F @ (S + S.conj().T)

    return ((F @ Z) / c) @ Z.conj().T, pullback


def log_condition_number(V: Array) -> tuple[float, Array, Array]:
    """Smooth log kappa(V) for unit columns, its gradient for V, and V^{-1}.

    log ||V||_{S_2p} + log ||V^{-1}||_{S_2p} with the Schatten 2p-norms: an upper bound of log kappa(V), at
    most log(n) / p above it. The gradient is that of V normalised: its part along each column is removed.
    """
    U, s, Zh = np.linalg.svd(V)
    s = np.maximum(s, np.finfo(float).tiny ** 0.25)  # a singular V must stay comparable, not become NaN
    high, low = (s / s[0]) ** (2 * SHARPNESS), (s[-1] / s) ** (2 * SHARPNESS)
    value = np.log(s[0] / s[-1]) + (np.log(high.sum()) + np.log(low.sum())) / (2 * SHARPNESS)
    G = (U * ((high / high.sum() - low / low.sum()) / s)) @ Zh
    G = G - V * np.sum(V.conj() * G, axis=0).real
    return float(value), G, (Zh.conj().T / s) @ U.conj().T


def through_eigenvectors(Lambda: Array, V: Array, V_inv: Array, G_Lambda: Array, G_V: Array) -> Array:
    """The gradient for M from those for its eigenvalues and unit eigenvectors.

    With P = V^{-1} dM V: dLambda_j = P_jj and dV = V (P o C), C_ij = 1 / (Lambda_j - Lambda_i) off the
    diagonal (Magnus 1985), up to multiples of the columns, to which G_V must be orthogonal.
    """
    gap = Lambda[None, :] - Lambda[:, None]
    C = np.divide(1, gap, out=np.zeros_like(gap), where=gap != 0)
    K = C.conj() * (V.conj().T @ G_V)
    K[np.diag_indices_from(K)] += G_Lambda
    return V_inv.conj().T @ K @ V.conj().T


def instability(Lambda: Array, ceiling: float, scale: float) -> tuple[float, Array]:
    """sum_j max(0, (Re Lambda_j - ceiling) / scale)^2 and its gradient for Lambda."""
    excess = np.maximum(0, (Lambda.real - ceiling) / scale)
    return float(excess @ excess), 2 * excess / scale


def log_deviation(
    Lambda: Array, V: Array, V_inv: Array, B: Array, frequencies: Array, X_A: Array
) -> tuple[float, Array]:
    """Smooth log max_w ||(iw - M)^{-1} B - X_A(w)||_F over a grid, and its gradient for M.

    d(iw - M)^{-1} B = (iw - M)^{-1} dM (iw - M)^{-1} B, both resolvents taken through V.

    Args:
        Lambda, V, V_inv: the diagonalisation of M, (n,), (n, n), (n, n).
        B: input matrix (n, m).
        frequencies: w (K,), radians per unit of time.
        X_A: (iw - A)^{-1} B, shape (n, m, K).
    """
    n, m, K = X_A.shape
    resolvent = 1 / (1j * frequencies - Lambda[:, None])
    X = V @ (resolvent[:, None, :] * (V_inv @ B)[:, :, None]).reshape(n, m * K)
    error = X.reshape(n, m, K) - X_A
    size = np.maximum(np.sqrt(np.sum(np.abs(error) ** 2, axis=(0, 1))), np.finfo(float).tiny ** 0.25)
    power = (size / size.max()) ** (2 * SHARPNESS)
    G_X = error * (power / power.sum() / size**2)
    back = resolvent.conj()[:, None, :] * (V.conj().T @ G_X.reshape(n, m * K)).reshape(n, m, K)
    G_M = V_inv.conj().T @ back.reshape(n, m * K) @ X.conj().T
    return float(np.log(size.max()) + np.log(power.sum()) / (2 * SHARPNESS)), G_M
