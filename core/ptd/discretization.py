"""Discretisation of x' = Lambda x + B u with a step: x_k = Lambda_bar x_{k-1} + gain * B u_k.

Both rules give a diagonal input gain, so B_bar = gain[:, None] * B is never formed. All arguments broadcast.
"""

from __future__ import annotations

import math

from .arrays import Array, eye, namespace, product, real, scale
from .recurrence import LowRankTransition

#: Below this |z| the power series of phi_1 is used. 1/2 keeps the cancellation in (e^z - 1)/z and in its
#: derivative, which automatic differentiation forms as (e^z - phi_1)/z, to a few ulp above it.
SERIES_RADIUS = 0.5
_SERIES = [1.0 / math.factorial(m + 1) for m in range(17)]  # remainder 0.5^17/18! < 2e-21
_SERIES_FLOAT32 = _SERIES[:9]  # remainder 0.5^9/10! < 6e-10, and of the derivative 1e-8


def phi_1(z: Array) -> Array:
    """phi_1(z) = (e^z - 1)/z, with phi_1(0) = 1 (the first phi function of exponential integrators).

    Args:
        z: complex array of any shape. Accurate to a few ulp of max(|phi_1(z)|, 1/|z|) for Re z <= 0.

    Returns:
        Array of z's shape and dtype.

    >>> import numpy as np
    >>> phi_1(np.array([0j, 1e-9 + 0j])).tolist()
    [(1+0j), (1.0000000005+0j)]
    """
    xp = namespace(z)
    near = xp.abs(z) < SERIES_RADIUS
    # Each branch sees only arguments at which it and its derivative are finite: a NaN behind where() would
    # still poison gradients.
    small = xp.where(near, z, xp.zeros_like(z))
    large = xp.where(near, xp.ones_like(z), z)
    coefficients = _SERIES_FLOAT32 if xp.finfo(real(z).dtype).eps > 1e-10 else _SERIES
    series = xp.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        series = series * small + coefficient
    return xp.where(near, series, (xp.exp(large) - 1.0) / large)


def zoh(Lambda: Array, step: Array) -> tuple[Array, Array]:
    """Zero-order hold: Lambda_bar = e^z and gain = step phi_1(z) with z = Lambda step (S5 eq. 6).

    Exact for inputs that are constant over each step. Lambda = 0 and step = 0 are allowed: a zero step holds
    the state, which is how skipped samples are expressed.

    Args:
        Lambda: complex eigenvalues, any shape, in 1/time.
        step: real step sizes, broadcastable against Lambda, in time.

    Returns:
        Lambda_bar and gain, complex, of the broadcast shape.

    >>> import numpy as np
    >>> Lambda_bar, gain = zoh(np.array([0j, -1.0]), np.array(0.5))
    >>> Lambda_bar.real.round(4).tolist(), gain.real.round(4).tolist()
    ([1.0, 0.6065], [0.5, 0.3935])
    """
    z = scale(Lambda, step)
    return namespace(z).exp(z), scale(phi_1(z), step)


def bilinear(Lambda: Array, step: Array) -> tuple[Array, Array]:
    """Bilinear (Tustin) rule: Lambda_bar = (1 + z/2)/(1 - z/2), gain = step/(1 - z/2), z = Lambda step (S4 eq. 3).

    Args:
        Lambda: complex eigenvalues, any shape, in 1/time.
        step: real step sizes, broadcastable against Lambda, in time.

    Returns:
        Lambda_bar and gain, complex, of the broadcast shape.

    >>> import numpy as np
    >>> Lambda_bar, gain = bilinear(np.array([0j, -2.0]), np.array(0.5))
    >>> Lambda_bar.real.round(4).tolist(), gain.real.round(4).tolist()
    ([1.0, 0.3333], [0.5, 0.3333])
    """
    half = scale(Lambda, step / 2.0)
    return (1.0 + half) / (1.0 - half), scale(1.0 / (1.0 - half), step)


def bilinear_low_rank(
    Lambda: Array, P: Array, B: Array, step: Array, *, conj_sym: bool
) -> tuple[LowRankTransition, Array]:
    """Bilinear rule for A = diag(Lambda) - P P^*: the transition stays diagonal plus low rank (S4 appendix C.2).

    With d = 1/(1 - Lambda step/2), W = (I + step/2 P^* d P)^{-1} (Woodbury) and s = step:
        A_bar = diag((1 + Lambda s/2) d) - s (d P) W (P^* d),     B_bar = s (d B - s/2 (d P) W (P^* d B)).

    Args:
        Lambda: complex (..., N).
        P: complex (..., N, r), r = 1 or 2.
        B: complex (..., N).
        step: real, broadcastable against Lambda.
        conj_sym: the N entries are one of each conjugate pair; P^* then sums over both halves.

    Returns:
        The transition and B_bar (..., N).
    """
    xp = namespace(Lambda)
    half = scale(Lambda, step / 2.0)
    d = 1.0 / (1.0 - half)
    dP = d[..., None] * P
    across = LowRankTransition(d, dP, P + xp.zeros_like(dP), conj_sym).project
    gram = xp.stack([across(dP[..., j]) for j in range(P.shape[-1])], axis=-1)
    step = step + xp.zeros_like(real(half))
    W = inverse_of_small(scale(gram, step[..., :1, None] / 2.0) + eye(P.shape[-1], like=dP))
    left = scale(product(dP, W), step[..., None])
    B_bar = scale(d * B - xp.sum(left * across(d * B)[..., None, :], axis=-1) / 2.0, step)
    right = xp.conj(d)[..., None] * P
    return LowRankTransition((1.0 + half) * d, left, right, conj_sym), B_bar


def inverse_of_small(matrix: Array) -> Array:
    """The inverse of (..., r, r) matrices for r = 1, 2, by cofactors: no framework lacks it."""
    xp = namespace(matrix)
    if matrix.shape[-1] == 1:
        return 1.0 / matrix
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    adjugate = xp.stack([xp.stack([d, -b], axis=-1), xp.stack([-c, a], axis=-1)], axis=-2)
    return adjugate / (a * d - b * c)[..., None, None]


RULES = {"zoh": zoh, "bilinear": bilinear}
