"""Largest effect of a perturbation on a transfer function, and the Fourier mode that a layer amplifies most.

Both are H-infinity norms of a system built for the purpose, and as sure as `hinf_norm`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .. import checks
from . import arguments
from .norms import Array, Peak, check_stable, hinf_norm
from .responses import both_halves, discretized_modes


def deviation(
    A: ArrayLike, E: ArrayLike, B: ArrayLike, *, B_perturbed: ArrayLike | None = None, rtol: float = 1e-8
) -> Peak:
    """Transfer deviation sup_omega ||(i omega - A - E)^{-1} B_E - (i omega - A)^{-1} B||_2 / ||B||_2.

    With ||C|| = 1 it bounds |G_PTD - G_S4| at every frequency, in units of ||B|| (Yu et al. 2024 sec. 4).

    Args:
        A: state matrix (N, N), stable.
        E: perturbation (N, N) with A + E stable.
        B: input column (N,) or matrix (N, m), not zero.
        B_perturbed: B_E, the input matrix that goes with A + E, of B's shape; B itself if None.
        rtol: relative tolerance, as in `hinf_norm`.

    Returns:
        Peak(gain, omega): the deviation (unit of time) and its frequency in rad per unit time, 0 where there is none.

    Raises:
        ValueError: shapes disagree, a value is not finite, A or A + E is not stable, B is zero.

    >>> gain, omega = deviation([[-1.0]], [[-1.0]], [1.0])
    >>> round(gain, 6), omega
    (0.5, 0.0)
    """
    A, E = arguments.square("A", A), arguments.square("E", E)
    checks.shape("E", E, A.shape, "(N, N) from A")
    B = arguments.columns("B", B, len(A))
    other = B if B_perturbed is None else arguments.columns("B_perturbed", B_perturbed, len(A))
    checks.shape("B_perturbed", other, B.shape, "the shape of B")
    B, change = B.reshape(len(A), -1), (other - B).reshape(len(A), -1)
    size = np.linalg.norm(B, 2)
    if size == 0:
        raise checks.fail("B", "a nonzero input matrix", "all zeros")
    for name, matrix in (("A", A), ("A + E", A + E)):
        check_stable(name, np.linalg.eigvals(matrix))
    # states (x_E - x, x): the difference is never formed from two large, nearly equal responses
    cascade = np.block([[A + E, E], [np.zeros_like(A), A]])
    output = np.eye(len(A), 2 * len(A))
    return hinf_norm(cascade, np.concatenate([change, B]) / size, output, rtol=rtol)


def worst_fourier_mode(
    Lambda: ArrayLike,
    B: ArrayLike,
    C: ArrayLike | None = None,
    *,
    step: ArrayLike,
    discretization: str = "zoh",
    conj_sym: bool = False,
    rtol: float = 1e-8,
) -> Peak:
    """Input frequency that a discretised diagonal layer amplifies most, and its gain, as sure as `hinf_norm`.

    The unit circle is mapped to the imaginary axis by s = (z - z0)/(z + z0), with z0 the best of the modes'
    own angles, so that z = -z0, where the map is singular, is far from the peak. Rounding of Lambda_bar itself
    costs a relative 1e-16/(step |Re Lambda|) of the gain: slower modes than 1e-8 per sample fall short of rtol.

    Args:
        Lambda: modes (P,), Re Lambda < 0, in rad per unit time.
        B: input column (P,) or matrix (P, m).
        C: output row (P,) or matrix (p, P), not conjugated; None for the norm of the modal state, all 2 P modes
            of it with conj_sym (pass V for the state in the basis before diagonalisation).
        step: time per sample, positive: one number or one per mode (P,).
        discretization: "zoh" or "bilinear".
        conj_sym: the P modes stand for themselves and their conjugates (B and C likewise).
        rtol: relative tolerance, as in `hinf_norm`.

    Returns:
        Peak(gain, omega), omega in rad per sample, in (-pi, pi]; nonnegative with conj_sym.

    Raises:
        ValueError: shapes disagree, a value is not finite, a mode is not stable, a step is not positive.

    >>> gain, theta = worst_fourier_mode([-0.01 + 5j], [1.0], [1.0], step=0.1)
    >>> round(gain, 1), round(theta, 3)
    (99.0, 0.5)
    """
    Lambda = arguments.modes("Lambda", Lambda)
    check_stable("diag(Lambda)", Lambda)
    B = arguments.columns("B", B, len(Lambda)).reshape(len(Lambda), -1)
    C = None if C is None else arguments.rows("C", C, len(Lambda)).reshape(-1, len(Lambda))
    Lambda_bar, factor = discretized_modes(Lambda, step, discretization)
    B = factor[:, None] * B
    if conj_sym:
        Lambda_bar, B = both_halves(Lambda_bar, 0), both_halves(B, 0)
        C = None if C is None else both_halves(C, 1)
    gain, theta = _largest_on_circle(Lambda_bar, B, np.eye(len(Lambda_bar)) if C is None else C, rtol)
    return Peak(gain, abs(theta) if conj_sym else theta)  # a real system gains the same at -theta


def _largest_on_circle(Lambda_bar: Array, B: Array, C: Array, rtol: float) -> Peak:
    angles = np.angle(Lambda_bar)
    distance = np.exp(1j * angles)[:, None] - Lambda_bar
    if not distance.all():
        need = "modes that decay by more than rounding in a step"
        raise checks.fail("Lambda", need, "one with |Lambda_bar| = 1", "take larger steps")
    sampled = np.einsum("pk,ak,km->apm", C, 1 / distance, B)
    turn = angles[np.linalg.norm(sampled, 2, axis=(1, 2)).argmax()]
    turned = Lambda_bar * np.exp(-1j * turn)
    # with z = (1 + s)/(1 - s), A = (turned - 1)/(turned + 1) and C here over 1 + turned:
    # C (z - turned)^{-1} B = (1 - s) C (s - A)^{-1} B = C (s - A)^{-1} (1 - A) B - C B
    A, C = (turned - 1) / (turned + 1), C / (1 + turned)
    gain, omega = hinf_norm(np.diag(A), (1 - A)[:, None] * B, C, -C @ B, rtol=rtol)
    theta = turn + 2 * np.arctan(omega)
    return Peak(gain, float(np.pi - (np.pi - theta) % (2 * np.pi)))
