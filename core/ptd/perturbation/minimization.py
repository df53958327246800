"""L-BFGS over perturbations E inside the ball ||E||_2 <= size."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import eigen_gradients, responses

Array = NDArray[Any]
Samples = tuple[Array, Array]

# Weight of the instability penalty. Its scale is a multiple of size, the looseness: a tight one makes the
# stability limit a wall that L-BFGS follows in tiny steps (n = 64: kappa 9.8 instead of 7.1 after as many).
PENALTY = 10.0

# The last rounds add the resonances of the moment to the frequencies of the soft maximum: a fixed grid steps
# over narrow ones (n = 128: deviation 0.058 where a fifth of it is reached), but descends faster.
Round = tuple[float, float, bool]  # share of the iterations, looseness, whether at the resonances
# A complex pair turns real only through a double eigenvalue, where kappa is infinite; a line search may step across.
# The barrier sends it back.
BARRIER = 1e3

EXPLORATION: Round = (1.0, 1 / 3, False)
ROUNDS: tuple[Round, ...] = ((1 / 2, 1 / 3, False), (1 / 4, 1 / 3, True), (1 / 4, 1 / 10, True))
LAST_RESORT: tuple[Round, ...] = ((1 / 4, 1 / 30, True), (1 / 4, 1 / 300, True))

# Of a stable A's decay rate, what A + E keeps: half, or a tenth of that where half is dear. The pseudospectrum of a
# Jordan block at -1 nearly reaches the imaginary axis: staying left of -1/2 costs kappa 7e8 at n = 32, of -1/20 10.
MARGINS = (1 / 2, 1 / 20)
DEAR = 30.0

# From the closed form's direction the deviation, tiny there, resists every step to a smaller kappa, the more the larger
# n (n = 128: kappa 27 after 400 iterations): a first run leaves it out. Up to 64 the descent succeeds with it, and ends
# at half the deviation.
LARGE = 64
ALONE = 1 / 4


@dataclasses.dataclass(frozen=True)
class Problem:
    """What to minimise: log(kappa [+ gamma size]) + weight log(deviation), stable where A is.

    B is (n, m) or None. With gamma the size is a variable that starts at `size`. With paired, more than n mod 2 real
    eigenvalues cost BARRIER each. Where A is stable, A + E keeps the share `margin` of its decay rate.
    """

    A: Array
    B: Array | None
    size: float
    gamma: float | None
    weight: float
    paired: bool = False
    margin: float = MARGINS[0]

    @cached_property
    def Lambda_A(self) -> Array:
        """Eigenvalues of A: they decide whether it is stable, nothing else."""
        return np.linalg.eigvals(self.A)

    @cached_property
    def ceiling(self) -> float | None:
        """The limit of Re Lambda, `margin` times A's spectral abscissa; None where A is not stable."""
        abscissa = float(self.Lambda_A.real.max())
        return self.margin * abscissa if abscissa < 0 else None

    @cached_property
    def response(self) -> responses.Response | None:
        """A's own response; None where the deviation does not count: without B, or where A is not stable."""
        if self.B is None or not self.weight or self.ceiling is None:
            return None
        return responses.response(self.A, self.B)

    def samples(self, x: Array | None) -> Samples | None:
        """Frequencies (K,) of the soft maximum, resonances at x included, and A's response (n, m, K)."""
        if self.B is None or self.response is None:
            return None
        resonances = np.zeros(1) if x is None else np.linalg.eigvals(self.A + self.perturbation(x)).imag
        grid = responses.frequency_grid(self.A, self.B, self.Lambda_A, resonances, 120)
        return grid, self.response(grid)

    def perturbation(self, x: Array) -> Array:
        """E at the variables x."""
        size, F = self.unpack(x)
        return size * eigen_gradients.ball(F)[0]

    def unpack(self, x: Array) -> tuple[float, Array]:
        """Size and F from the real variables: log(size / self.size) first where gamma is given."""
        size, entries = (self.size * np.exp(x[0]), x[1:]) if self.gamma else (self.size, x)
        return float(size), entries.view(self.A.dtype).reshape(self.A.shape)

    def pack(self, first: float, F: Array) -> Array:
        """The inverse of `unpack` for variables and for gradients."""
        entries = np.ascontiguousarray(F).view(np.float64).ravel()
        return np.concatenate([[first], entries]) if self.gamma else entries

    def objective(self, x: Array, looseness: float, samples: Samples | None) -> tuple[float, Array]:
        """Value and gradient at the variables x; the instability penalty has the scale looseness * size."""
        size, F = self.unpack(x)
        direction, pullback = eigen_gradients.ball(F)
        value, G_M, kappa_slope = self._of_matrix(self.A + size * direction, size, looseness, samples)
        G_M = G_M if np.iscomplexobj(self.A) else G_M.real
        first = size * float(np.vdot(direction, G_M).real) + kappa_slope * size
        return value, self.pack(first, pullback(size * G_M))

    def _of_matrix(
        self, M: Array, size: float, looseness: float, samples: Samples | None
    ) -> tuple[float, Array, float]:
        Lambda, V = np.linalg.eig(M)
        value, G_V, V_inv = eigen_gradients.log_condition_number(V)
        slope = 0.0
        if self.gamma:
            kappa, value = np.exp(value), np.logaddexp(value, np.log(self.gamma * size))
            G_V, slope = G_V * (kappa / np.exp(value)), self.gamma / np.exp(value)
        G_Lambda = np.zeros_like(Lambda)
        if self.ceiling is not None:
            penalty, slopes = eigen_gradients.instability(Lambda, self.ceiling, looseness * self.size)
            value, G_Lambda = value + PENALTY * penalty, PENALTY * slopes
        G_M = eigen_gradients.through_eigenvectors(Lambda, V, V_inv, G_Lambda, G_V)
        if self.B is not None and samples:
            deviation, G = eigen_gradients.log_deviation(Lambda, V, V_inv, self.B, *samples)
            value, G_M = value + self.weight * deviation, G_M + self.weight * G
        return float(value) + BARRIER * self.surplus(Lambda), G_M, float(slope)

    def surplus(self, Lambda: Array) -> int:
        """How many real eigenvalues there are beyond what pairing allows."""
        return max(0, int(np.sum(Lambda.imag == 0)) - Lambda.size % 2) if self.paired else 0

    def is_stable(self, x: Array) -> bool:
        """Whether Re Lambda < 0 with half the margin asked for; True where A itself is not stable."""
        if self.ceiling is None:
            return True
        return bool(np.linalg.eigvals(self.A + self.perturbation(x)).real.max() < self.ceiling / 2)


def minimize(problem: Problem, starts: list[Array], iterations: int) -> Array:
    """The best E from several starts F (n, n), with a smaller stability margin where the first one is dear."""
    E = _minimize(problem, starts, iterations)
    for margin in MARGINS[1:]:
        if not _is_dear(problem, E):
            break
        problem = dataclasses.replace(problem, margin=margin)
        other = _minimize(problem, starts, iterations)
        # the margin is given up for no less than half of kappa
        E = other if _rank(problem, other, 2.0) < _rank(problem, E) else E
    return E


def pairing_start(problem: Problem, B: Array, iterations: int) -> tuple[Array, int]:
    """A start F (n, n) that pairs all eigenvalues of HiPPO-LegS at once, and the iterations left after it.

    B B^T is the closed form's direction.
    """
    F, used = 3 * B @ B.T / np.linalg.norm(B, 2) ** 2, 0
    if len(F) > LARGE:
        used = max(1, round(ALONE * iterations))
        alone = dataclasses.replace(problem, weight=0.0)
        _, x = _descend(alone, alone.pack(0.0, F), used, EXPLORATION)
        _, F = alone.unpack(x)
    return F, max(1, iterations - used)


def _minimize(problem: Problem, starts: list[Array], iterations: int) -> Array:
    """A short run from each start, a long one from the best."""
    short, x = 0, problem.pack(0.0, starts[0])
    if len(starts) > 1:
        short = iterations // (len(starts) + 1)
        runs = [_descend(problem, problem.pack(0.0, F), short, EXPLORATION) for F in starts]
        _, x = min(runs, key=lambda run: run[0])
    remaining = iterations - short * len(starts)
    for stage in ROUNDS:
        _, x = _descend(problem, x, remaining, stage)
    for stage in LAST_RESORT:
        if not problem.is_stable(x):
            _, x = _descend(problem, x, iterations, stage)
    return problem.perturbation(x)


def _is_dear(problem: Problem, E: Array) -> bool:
    """Whether the stability margin binds, or is missed, at a large kappa."""
    Lambda, V = np.linalg.eig(problem.A + E)
    return problem.ceiling is not None and Lambda.real.max() > 1.1 * problem.ceiling and np.linalg.cond(V) > DEAR


def _rank(problem: Problem, E: Array, factor: float = 1.0) -> tuple[bool, int, float]:
    """Stable before unstable, paired before not, then by factor * kappa."""
    Lambda, V = np.linalg.eig(problem.A + E)
    return bool(Lambda.real.max() >= 0), problem.surplus(Lambda), factor * float(np.linalg.cond(V))


def _descend(problem: Problem, x: Array, iterations: int, stage: Round) -> tuple[float, Array]:
    from scipy.optimize import minimize  # a quarter of what `import ptd` would take

    share, looseness, resonant = stage
    limit = max(1, round(share * iterations))
    options = {"maxiter": limit, "maxfun": 2 * limit, "maxcor": 20, "ftol": 1e-8, "gtol": 1e-9}
    arguments = (looseness, problem.samples(x if resonant else None))
    found = minimize(problem.objective, x, arguments, "L-BFGS-B", jac=True, options=options)
    return float(found.fun), found.x
