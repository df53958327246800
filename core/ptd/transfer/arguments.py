"""Arguments of the transfer functions, checked once at the border and brought to one form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks

Array = NDArray[Any]
_LEAST = float(np.nextafter(0, 1))


def square(name: str, A: ArrayLike) -> Array:
    """A nonempty, square, finite matrix, float64 or complex128."""
    A = _inexact(name, A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not A.size:
        raise checks.fail(name, "a square matrix (N, N)", f"shape {A.shape}")
    return A


def modes(name: str, Lambda: ArrayLike) -> Array:
    """A nonempty, finite vector of modes, float64 or complex128."""
    Lambda = _inexact(name, Lambda)
    if Lambda.ndim != 1 or not Lambda.size:
        raise checks.fail(name, "modes (P,)", f"shape {Lambda.shape}")
    return Lambda


def columns(name: str, B: ArrayLike, N: int) -> Array:
    """An input column (N,) or matrix (N, m), finite."""
    B = _inexact(name, B)
    if B.ndim not in (1, 2) or B.shape[0] != N:
        raise checks.fail(name, f"shape (N,) or (N, m) with N={N}", B.shape)
    return B


def rows(name: str, C: ArrayLike, N: int) -> Array:
    """An output row (N,) or matrix (p, N), finite."""
    C = _inexact(name, C)
    if C.ndim not in (1, 2) or C.shape[-1] != N:
        raise checks.fail(name, f"shape (N,) or (p, N) with N={N}", C.shape)
    return C


def frequencies(omega: ArrayLike) -> Array:
    """Real finite frequencies, float64, any shape."""
    omega = _inexact("omega", omega)
    if np.iscomplexobj(omega):
        raise checks.fail("omega", "real frequencies", f"dtype {omega.dtype}", "the factor i is applied inside")
    return omega


def points(s: ArrayLike) -> Array:
    """Finite complex points, any shape."""
    return _inexact("s", s).astype(complex)


def fraction(name: str, value: Any, remedy: str = "") -> None:
    """Raise unless value is a number strictly between 0 and 1."""
    checks.number(name, value, _LEAST, 1, "a number in (0, 1)" + (f" ({remedy})" if remedy else ""))


def one_step(step: Any) -> float:
    """One positive finite step as a float."""
    checks.number("step", step, _LEAST, np.inf, "one positive finite number, or None for continuous time")
    return float(step)


def steps(step: ArrayLike, P: int) -> Array:
    """One positive finite step, or one per mode (P,)."""
    step = _inexact("step", step)
    if step.ndim:
        checks.shape("step", step, (P,), "(P,) from Lambda, or one number")
    checks.positive("step", step)
    return step


def _inexact(name: str, array: ArrayLike) -> Array:
    array = np.asarray(array)
    if array.dtype.kind not in "biufc":
        raise checks.fail(name, "numbers", f"dtype {array.dtype}")
    if not np.isfinite(array).all():
        raise checks.fail(name, "finite values", array[~np.isfinite(array)][0])
    return array.astype(complex if array.dtype.kind == "c" else float, copy=False)
