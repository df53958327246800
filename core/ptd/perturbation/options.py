"""The arguments of `perturb_then_diagonalize`, checked before any arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks

Array = NDArray[Any]

# Which of size, gamma and rho each method understands.
METHODS = {"optimized": ("size", "gamma"), "random": ("size",), "closed-form": ("rho",)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything but the matrices; its repr is part of the cache key."""

    method: str
    size: float | None
    gamma: float | None
    rho: float | None
    seed: int
    deviation_weight: float
    restarts: int | None
    iterations: int
    paired: bool = False

    def __post_init__(self) -> None:
        checks.choice("method", self.method, METHODS)
        for name in ("size", "gamma", "rho"):
            self._check_amount(name)
        if self.size is not None and self.gamma is not None:
            raise checks.fail("gamma", "None where size is given", self.gamma, "pass one of the two")
        if self.rho is not None and self.rho >= 1:
            raise checks.fail("rho", "0 < rho < 1", self.rho, "rho = 1 is S4D-LegS and kappa <= 1/rho = 1")
        if not _is_real_number(self.deviation_weight) or not 0 <= self.deviation_weight < np.inf:
            raise checks.fail("deviation_weight", "a finite number >= 0", repr(self.deviation_weight))
        checks.boolean("paired", self.paired)
        checks.positive_integer("iterations", self.iterations)
        if self.restarts is not None:
            checks.positive_integer("restarts", self.restarts)
        checks.seed(self.seed)

    def _check_amount(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if name not in METHODS[self.method]:
            owners = " or ".join(repr(method) for method, names in METHODS.items() if name in names)
            raise checks.fail(name, f"None for method {self.method!r}", repr(value), f"it belongs to {owners}")
        if not _is_real_number(value) or not 0 < value < np.inf:
            raise checks.fail(name, "a finite number > 0", repr(value))


def matrix(A: Any) -> Array:
    """A as a finite float64 or complex128 (n, n)."""
    A = np.asarray(A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise checks.fail("A", "a square matrix (n, n), n >= 1", f"shape {A.shape}")
    return _numbers("A", A)


def inputs(B: Any, n: int) -> Array:
    """B as a finite float64 or complex128 (n,) or (n, m)."""
    B = np.asarray(B)
    if B.ndim not in (1, 2) or B.shape[0] != n or 0 in B.shape:
        raise checks.fail("B", f"shape (n,) or (n, m) with n={n} from A", f"shape {B.shape}")
    return _numbers("B", B)


def _numbers(name: str, X: Array) -> Array:
    if X.dtype.kind not in "iufc":
        raise checks.fail(name, "real or complex numbers", f"dtype {X.dtype}")
    if (bad := np.argwhere(~np.isfinite(X))).size:
        place = tuple(map(int, bad[0]))
        raise checks.fail(name, "finite values", f"{X[place]} at index {place}")
    return X.astype(np.complex128 if X.dtype.kind == "c" else np.float64)


def _is_real_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
