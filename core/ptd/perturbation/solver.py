"""Perturb-then-diagonalize: a small E such that A + E = V diag(Lambda) V^{-1} with a well-conditioned V.

Source: Yu et al. 2024, sec. 4 (the method), app. I (random E); Banks et al. 2021 (Davies' conjecture).
Whatever E is, the result is the exact diagonalisation of a nearby matrix: it is backward stable.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from .. import checks
from . import responses, result_cache
from .diagonalization import Diagonalization, diagonalize, unitary_modes
from .minimization import Problem, minimize, pairing_start
from .options import Options, inputs, matrix

Array = NDArray[Any]

# Raise whenever the numbers of any method change: it is part of every cache key.
ALGORITHM = "8"
DEFAULT_FRACTION = 0.04
DEFAULT_RHO = 0.1
# Beyond these norms squares of entries, as the minimisation has them, may leave the range of doubles.
MODERATE = 2.0**-200, 2.0**200
# A backward error above this is no diagonalisation of A + E any more.
BACKWARD_STABLE = 1e-6


class NotConverged(RuntimeError):
    """No admissible perturbation was found; `best` holds the best Diagonalization met."""

    def __init__(self, message: str, best: Diagonalization) -> None:
        super().__init__(message, best)
        self.best = best

    def __str__(self) -> str:
        return str(self.args[0])


def perturb_then_diagonalize(
    A: Any,
    B: Any = None,
    *,
    method: str = "optimized",
    size: float | None = None,
    gamma: float | None = None,
    rho: float | None = None,
    seed: int = 0,
    deviation_weight: float = 0.2,
    restarts: int | None = None,
    iterations: int = 400,
    paired: bool = False,
    cache: bool = True,
) -> Diagonalization:
    """A well-conditioned diagonalisation of a matrix near A (Yu et al. 2024 sec. 4).

    "optimized" minimises  log kappa(V) + deviation_weight * log(deviation)  over ||E||_2 <= size; where gamma
    is given (the paper's trade-off), log(kappa(V) + gamma ||E||_2) stands for log kappa(V), over all E. The
    second term counts where B is given and A is stable. A stable A keeps its stability: Re Lambda is held
    below half of A's spectral abscissa, or below a twentieth where half costs a large kappa. kappa and the
    deviation enter as smooth maxima with analytic gradients; L-BFGS from `restarts` random starts, the
    iterations shared evenly by these and by the final run from the best.
    "random" is a Ginibre matrix scaled to ||E||_2 = size, the control.
    "closed-form", for HiPPO-LegS: E_rho = rho/(1+rho) B B^T with B_rho = B/(1+rho), so that the transfer
    function is exactly G/(1 + rho r_n), kappa(V) <= 1/rho and Re Lambda < -1/2 at every n.

    Args:
        A: square matrix (n, n), real or complex, finite; per unit of time. Real A gives real E.
        B: input column (n,) or matrix (n, m), finite; required by "closed-form".
        method: "optimized", "random" or "closed-form".
        size: bound on ||E||_2, > 0, in units of A; by default 0.04 ||A||_2.
        gamma: weight of ||E||_2, > 0, in units of 1/A; excludes size.
        rho: 0 < rho < 1, "closed-form" only; by default 0.1.
        seed: seed of np.random.default_rng, >= 0.
        deviation_weight: >= 0; 0.2 gives up one per cent of kappa for five of the deviation.
        restarts: number of random starts, >= 1; by default 96 / n, within 1 ... 4.
        iterations: L-BFGS iterations in all, >= 1; half as many again may follow to reach stability.
        paired: "optimized", real A: at most n mod 2 real eigenvalues, so that half of the modes suffice.
        cache: keep and reuse results on disk (folder PTD_CACHE, else the user's cache folder).

    Returns:
        A `Diagonalization`.

    Raises:
        ValueError: a bad argument, named in one line.
        NotConverged: V is numerically singular or its backward error above 1e-6, or "optimized" left A + E unstable
            where A is stable, or with surplus real eigenvalues where they were to be paired.

    >>> from ptd import hippo
    >>> found = perturb_then_diagonalize(*hippo.legs(8), size=4.01, cache=False)
    >>> found.condition_number < 5.114, found.deviation < 0.0505, found.spectral_abscissa < 0
    (True, True, True)
    """
    options = Options(method, size, gamma, rho, seed, deviation_weight, restarts, iterations, paired)
    A = matrix(A)
    B = None if B is None else inputs(B, A.shape[0])
    if method == "closed-form":
        _check_legs(A, B)
    name = result_cache.key(ALGORITHM, A, B, options)
    if cache and (stored := _restored(result_cache.load(name))):
        return stored
    found = diagonalize(A, B, *_perturbation(A, B, options))
    _check_converged(A, found, options)
    if cache:
        result_cache.store(name, {k: np.asarray(v) for k, v in vars(found).items() if v is not None})
    return found


def _perturbation(A: Array, B: Array | None, options: Options) -> tuple[Array, Array | None]:
    """E and the input that belongs to A + E."""
    if options.method == "closed-form" and B is not None:
        rho = options.rho or DEFAULT_RHO
        return rho / (1 + rho) * np.outer(B, B), B / (1 + rho)
    rng = np.random.default_rng(options.seed)
    size = options.size or DEFAULT_FRACTION * float(np.linalg.norm(A, 2))
    if options.method == "random":
        E = _ginibre(rng, A)
        return E * (size / np.linalg.norm(E, 2)), B
    if not size or ((found := unitary_modes(A)) and not _unpaired(found[0], A, options)):
        return np.zeros_like(A), B  # no perturbation can do better, or none of a share of 0 is one
    if (norm := float(np.abs(A).max())) and not MODERATE[0] < norm < MODERATE[1]:
        unit = 2.0 ** round(np.log2(norm))
        scaled = dataclasses.replace(options, size=size / unit, gamma=None)
        if options.gamma is not None:
            scaled = dataclasses.replace(options, gamma=options.gamma * unit)
        return unit * _perturbation(A / unit, B, scaled)[0], B
    # where its core is taken, a second BLAS thread makes these orders seven times slower (n = 32: 4.2 s for 0.6 s);
    # one thread also rounds alike on every machine
    with threadpool_limits(1, "blas"):
        return _optimized(A, B, size, options, rng), B


def _optimized(A: Array, B: Array | None, size: float, options: Options, rng: np.random.Generator) -> Array:
    n = len(A)
    restarts = options.restarts or min(4, max(1, 96 // n))
    columns = None if B is None else B.reshape(n, -1)
    paired = options.paired and not np.iscomplexobj(A)
    problem = Problem(A, columns, size, options.gamma, options.deviation_weight, paired)
    if paired and B is not None and columns is not None and responses.is_legs(A, B):
        F, iterations = pairing_start(problem, columns, options.iterations)
        return minimize(problem, [F], iterations)
    # inside the ball: from near its boundary runs end in minima with up to thrice the deviation (n <= 32),
    # from near its centre they take longer (n = 256)
    norm = min(1.0, 0.4 * np.sqrt(n / 32))
    starts = [norm / 2 * _ginibre(rng, A) / np.sqrt(n) for _ in range(restarts)]
    return minimize(problem, starts, options.iterations)


def _ginibre(rng: np.random.Generator, A: Array) -> Array:
    E = rng.standard_normal(A.shape)
    return E + 1j * rng.standard_normal(A.shape) if np.iscomplexobj(A) else E


def _unpaired(Lambda: Array, A: Array, options: Options) -> int:
    """How many eigenvalues are real where they were to be paired, if more than one of an odd number."""
    count = int(np.sum(Lambda.imag == 0))
    return count if options.paired and np.isrealobj(A) and count > len(A) % 2 else 0


def _restored(stored: dict[str, Array] | None) -> Diagonalization | None:
    optional = {"B", "deviation", "deviation_bound"}
    names = {field.name for field in dataclasses.fields(Diagonalization)}
    if stored is None or not names - optional <= stored.keys() <= names:
        return None
    values: dict[str, Any] = dict.fromkeys(optional)
    values |= {name: value if value.ndim else value.item() for name, value in stored.items()}
    return Diagonalization(**values)


def _check_converged(A: Array, found: Diagonalization, options: Options) -> None:
    if not found.condition_number < 1 / np.finfo(float).eps:
        raise NotConverged("V is numerically singular: pass a larger size or another seed", found)
    if not found.backward_error < BACKWARD_STABLE:
        message = f"V is too ill-conditioned to be inverted, backward error {found.backward_error:.1g}"
        raise NotConverged(f"{message}: pass a larger size or another seed", found)
    was_stable = np.linalg.eigvals(A).real.max() < 0
    if count := _unpaired(found.Lambda, A, options):
        raise NotConverged(f"{count} real eigenvalues remain: pass a larger size", found)
    if options.method == "optimized" and found.E.any() and was_stable and found.spectral_abscissa >= 0:
        message = f"A is stable but A + E is not, max Re Lambda = {found.spectral_abscissa:.3g}"
        raise NotConverged(f"{message}: pass a smaller size, another seed or more restarts", found)


def _check_legs(A: Array, B: Array | None) -> None:
    if B is None or not responses.is_legs(A, B):
        got = "no B" if B is None else "another pair"
        remedy = "pass hippo.legs(N), or method='optimized'"
        raise checks.fail("method 'closed-form'", "A and B of HiPPO-LegS", got, remedy)
