"""Exact transfer-function formulas of HiPPO-LegS (Yu et al. 2024 sec. 3; products by forward substitution).

r_n(s) = prod_{j<n} (s - j)/(s + j + 1)             B^T (sI - A)^{-1} B = 1 - r_n(s)
G_S4D(s) = G_S4(s)/(1 + r_n(s))                     for S4D-LegS = (A_N, B/2), any output row C
G_rho(s) = G_S4(s)/(1 + rho r_n(s))                 for the closed-form PTD of parameter rho
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from . import arguments

Array = NDArray[Any]


class Spikes(NamedTuple):
    """Frequencies (rad per unit time, descending) and gains 1/|1 + r_n| of S4D's spikes."""

    omega: Array
    gain: Array


def legs_r(n: int, s: ArrayLike) -> Array:
    """All-pass-like factor r_n(s) = prod_{j<n} (s - j)/(s + j + 1) (Yu et al. 2024 sec. 3).

    On the imaginary axis |r_n(i w)| = |w|/sqrt(w^2 + n^2) and, for w > 0,
    arg r_n(i w) = atan(n/w) + 2 sum_{0<j<n} atan(j/w). Both are used there: the terms have one sign, so
    modulus and phase keep full relative accuracy at any n.

    Args:
        n: order, at least 1.
        s: complex points, any shape; not one of the poles -1, ..., -n.

    Returns:
        Complex array of the shape of s.

    Raises:
        ValueError: n is not a positive integer, or s is not finite or a pole.

    >>> legs_r(2, [1j, 2j]).round(3).tolist()
    [(-0.4+0.2j), (-0.1+0.7j)]
    """
    s = _regular_points(n, s)
    axis = (s.real == 0) & (s.imag != 0)
    r = np.ones(s.shape, dtype=complex)
    r[axis] = _r_on_axis(n, s.imag[axis])
    for j in range(n):
        r[~axis] *= (s[~axis] - j) / (s[~axis] + j + 1)
    return r


def legs_states(n: int, s: ArrayLike) -> Array:
    """State response ((sI - A)^{-1} B)_i = sqrt(2i+1)/(s+i+1) prod_{j<i} (s-j)/(s+j+1) of LegS.

    Args:
        n: order, at least 1.
        s: complex points, any shape; not one of the poles -1, ..., -n.

    Returns:
        Complex array of shape s.shape + (n,).

    Raises:
        ValueError: n is not a positive integer, or s is not finite or a pole.

    >>> legs_states(2, 1.0).round(3).tolist()
    [(0.5+0j), (0.289+0j)]
    """
    s = _regular_points(n, s)[..., None]
    i = np.arange(n)
    factors = np.concatenate([np.ones_like(s), (s - i[:-1]) / (s + i[:-1] + 1)], axis=-1)
    return np.sqrt(2 * i + 1) / (s + i + 1) * np.cumprod(factors, axis=-1)


def legs_spikes(n: int, count: int | None = None) -> Spikes:
    """Spikes of |G_S4D(i w)|: w_k = Im eig(A_N), descending, and the factor 1/|1 + r_n(i w_k)| over S4 there.

    Each eigenvalue -1/2 + i w of A_N solves 2 sum_{j<n} atan((j + 1/2)/w) = (2k + 1) pi. The left side is
    concave in 1/w, so Newton's method from w = n^2/((2k+1) pi) is monotone: no eigenproblem, O(n count).

    Args:
        n: order, at least 2.
        count: how many, largest frequency first; all n // 2 positive ones if None.

    Returns:
        omega (count,) in rad per unit time and gain (count,), float64.

    Raises:
        ValueError: n is not an integer >= 2, or count not one in 1 ... n // 2.

    >>> omega, gain = legs_spikes(16, 1)
    >>> omega.round(3).tolist(), gain.round(1).tolist()
    ([80.966], [52.7])
    """
    checks.positive_integer("n", n)
    if n < 2:
        raise checks.fail("n", "an integer >= 2", n, "order 1 has no spike")
    count = n // 2 if count is None else count
    checks.positive_integer("count", count)
    if count > n // 2:
        raise checks.fail("count", f"at most n // 2 = {n // 2}", count)
    omega = np.array([_eigenfrequency(n, k) for k in range(count)])
    return Spikes(omega, 1 / np.abs(1 + legs_r(n, 1j * omega)))


def closed_form_bound(rho: float) -> float:
    """Certified bound rho/(1 - rho) on |G_rho/G_S4 - 1|, at every frequency and every n, of closed-form PTD.

    From G_rho = G_S4/(1 + rho r_n) and |r_n| < 1 on the imaginary axis.

    Args:
        rho: perturbation parameter, 0 < rho < 1.

    Returns:
        The bound, dimensionless.

    Raises:
        ValueError: rho is outside (0, 1).

    >>> closed_form_bound(0.5)
    1.0
    """
    arguments.fraction("rho", rho, "0 is S4 itself and 1 is S4D")
    return rho / (1 - rho)


def _eigenfrequency(n: int, k: int) -> float:
    half, target = np.arange(n) + 0.5, (2 * k + 1) * np.pi
    x = target / n**2
    change = x
    while change > 1e-14 * x:  # rises to the root from below: a step that does not rise is rounding
        slope = (2 * half / (1 + (half * x) ** 2)).sum()
        change = (target - 2 * np.arctan(half * x).sum()) / slope
        x += change
    return 1 / x


def _r_on_axis(n: int, w: Array) -> Array:
    j = np.arange(1, n)
    # arctan2: n/w would overflow at the smallest w
    phase = np.array([np.arctan2(n, v) + 2 * np.arctan2(j, v).sum() for v in np.abs(w)])
    return np.abs(w) / np.hypot(w, n) * np.exp(1j * np.sign(w) * phase)


def _regular_points(n: int, s: ArrayLike) -> Array:
    checks.positive_integer("n", n)
    s = arguments.points(s)
    poles = s[np.isin(s, -1.0 - np.arange(n))]
    if poles.size:
        raise checks.fail("s", f"points other than the poles -1 ... -{n}", poles[0])
    return s
