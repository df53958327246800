"""Initial state matrices in modal form: what an initialisation decides before anything random is drawn.

Each function returns Modes for an order N. Adding an initialisation is adding a function to MODES.
Everything runs once, on the host, in float64. Eigenvectors are fixed up to a phase only; the phase is chosen so that
the input column is real and positive, which makes results equal on every platform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import checks, hippo
from .perturbation import Diagonalization, perturb_then_diagonalize

Complex = NDArray[np.complexfloating]

#: Re Lambda given to measures whose normal part is skew (LegT, FouT), in 1/time: clear of the stability margin,
#: and over the unit window a decay of 0.1 %.
SKEW_DECAY = 1e-3


@dataclass(frozen=True)
class Modes:
    """A real system in modal coordinates z = V_inv x, x = 2 Re(V z) (x = V z if all modes are stored).

    Attributes:
        Lambda: (P,) eigenvalues, in 1/time.
        V: (N, P), from modes to the real basis.
        V_inv: (P, N), back.
        B_tilde: (P,) the input column in modal coordinates.
        P_tilde: (P, r) the low-rank factor of S4, or None.
    """

    Lambda: Complex
    V: Complex
    V_inv: Complex
    B_tilde: Complex
    P_tilde: Complex | None = None


def legs(N: int, *, conj_sym: bool = True) -> Modes:
    """The normal part of HiPPO-LegS with input B/2 (S4D-LegS; S5's HiPPO-N).

    B/2, as S4D theorem 3 has it: so the transfer function tends to S4's input by input. Code that keeps B differs
    by a factor 2.
    """
    A_N, _, B = hippo.normal_plus_low_rank("legs", N)
    return _normal_modes(A_N, B / 2, None, conj_sym)


def dplr(measure: str, N: int, *, conj_sym: bool = True) -> Modes:
    """The normal-plus-low-rank form of a HiPPO matrix (S4 thm 1): measure is "legs", "legt" or "fout"."""
    A_N, P, B = hippo.normal_plus_low_rank(measure, N)
    return _normal_modes(A_N, B, P, conj_sym)


def ptd(N: int, *, conj_sym: bool = True, size: float | None = None) -> Modes:
    """HiPPO-LegS perturbed by an optimised real E, then diagonalised (Yu et al. 2024 sec. 4).

    Args:
        N: order.
        conj_sym: store one mode of each pair.
        size: bound on ||E||_2; the default of perturb_then_diagonalize if None.

    Raises:
        NotConverged: with conj_sym, where eigenvalues cannot be paired at this size; so it is for N = 2.
    """
    return _from_diagonalization(perturb_then_diagonalize(*hippo.legs(N), size=size, paired=conj_sym), conj_sym)


def ptd_closed(N: int, *, conj_sym: bool = True, rho: float = 0.1) -> Modes:
    """HiPPO-LegS with the closed-form perturbation E = rho/(1+rho) B B^T and input B/(1+rho).

    The transfer function is S4's divided by 1 + rho r_N(s): within rho/(1-rho) of it at every frequency.
    """
    result = perturb_then_diagonalize(*hippo.legs(N), method="closed-form", rho=rho)
    return _from_diagonalization(result, conj_sym)


def lin(N: int, *, conj_sym: bool = True) -> Modes:
    """Lambda_n = -1/2 + i pi n (S4D-Lin)."""
    n = _stored(N, conj_sym)
    return _uncoupled(-0.5 + 1j * np.pi * n)


def inv(N: int, *, conj_sym: bool = True) -> Modes:
    """Lambda_n = -1/2 + i (N/pi) (N/(2n+1) - 1) (S4D-Inv)."""
    n = _stored(N, conj_sym)
    return _uncoupled(-0.5 + 1j * N / np.pi * (N / (2 * n + 1) - 1))


def real(N: int, *, conj_sym: bool = True) -> Modes:
    """Lambda_n = -(n+1) (S4D-Real)."""
    return _uncoupled(-(_stored(N, conj_sym) + 1) + 0j)


def rand(N: int, *, conj_sym: bool = True, seed: int = 0) -> Modes:
    """Lambda_n = -1/2 + i e^g with g standard normal (S4D-Rand)."""
    checks.seed(seed)
    g = np.random.default_rng(seed).standard_normal(_stored(N, conj_sym).size)
    return _uncoupled(-0.5 + 1j * np.exp(g))


#: Diagonal initialisations by the name users pass as ``init``.
MODES: dict[str, Callable[..., Modes]] = {
    "legs": legs,
    "ptd": ptd,
    "ptd-closed": ptd_closed,
    "lin": lin,
    "inv": inv,
    "real": real,
    "rand": rand,
}


def _stored(N: int, conj_sym: bool) -> NDArray[np.float64]:
    checks.positive_integer("N", N)
    return np.arange(math.ceil(N / 2) if conj_sym else N, dtype=np.float64)


def _uncoupled(Lambda: Complex) -> Modes:
    """Modes of the real system of P 2 x 2 rotations, of order N = 2 P: z = (x_1 - i x_2)/sqrt 2 for each; B = 1.

    However many are stored, they are one of each conjugate pair: x = 2 Re(V z), and V V_inv is not the identity.
    """
    identity = np.eye(Lambda.size) / np.sqrt(2)
    return Modes(
        Lambda,
        np.concatenate([identity, 1j * identity]),
        np.concatenate([identity, -1j * identity], axis=1),
        np.ones_like(Lambda),
    )


def _normal_modes(A_N: NDArray, B: NDArray, P: NDArray | None, conj_sym: bool) -> Modes:
    """Modes of A_N = c I + skew through the Hermitian eigenproblem of -i skew, with a unitary V."""
    c = A_N[0, 0]
    frequency, V = np.linalg.eigh(-0.5j * (A_N - A_N.T))
    order = len(frequency)
    # eigh sorts upwards: the last floor(N/2) are the positive frequencies; an odd order has one more, exactly zero.
    frequency = (frequency - frequency[::-1]) / 2
    middle = order // 2
    if order % 2 == 0 and frequency[middle] < 1e-12 * order**2:  # FouT of even order: a pair at frequency zero
        frequency[middle - 1 : middle + 1] = 0
        V[:, middle] = _null_pair(V[:, middle - 1 : middle + 1], B)
        V[:, middle - 1] = V[:, middle].conj()
    Lambda = min(c, -SKEW_DECAY) + 1j * frequency
    V_inv = V.conj().T
    if conj_sym:
        keep = slice(middle, None)
        weight = np.ones(order - middle)
        weight[: order % 2] = np.sqrt(0.5)  # the real mode of an odd order is its own conjugate
        Lambda, V, V_inv = Lambda[keep], V[:, keep] * weight, V_inv[keep] * weight[:, None]
    return _with_phase(Lambda, V, V_inv, B, P)


def _null_pair(Z: Complex, B: NDArray) -> Complex:
    """One vector v of a conjugate pair that spans a real plane, from any orthonormal basis Z (N, 2) of it.

    eigh returns an arbitrary basis, in general not closed under conjugation. v = (a + i b)/sqrt 2 with a along the
    projection of B and b across it is the same on every platform.
    """
    plane = (Z @ Z.conj().T).real
    a = plane @ B / np.linalg.norm(plane @ B)
    rest = plane - np.outer(a, a)
    b = rest[:, np.argmax(np.diag(rest))]
    return (a + 1j * b / np.linalg.norm(b)) / np.sqrt(2)


def _from_diagonalization(result: Diagonalization, conj_sym: bool) -> Modes:
    assert result.B is not None  # it was passed in
    parts = result.half() if conj_sym else (result.Lambda, result.V, result.V_inv)
    return _with_phase(*parts, result.B, None)


def _with_phase(Lambda: Complex, V: Complex, V_inv: Complex, B: NDArray, P: NDArray | None) -> Modes:
    phase = np.exp(1j * np.angle(V_inv @ B))
    V, V_inv = V * phase, V_inv / phase[:, None]
    return Modes(Lambda, V, V_inv, V_inv @ B, None if P is None else V_inv @ P)
