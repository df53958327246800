"""The systems compared, in HiPPO-LegS's own real basis, where their states mean the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import hippo
from ..perturbation import Diagonalization, perturb_then_diagonalize

Array = NDArray[Any]

#: Each diagonal form and its name in ptd.modes.MODES; S4 is HiPPO-LegS itself.
INITS = {"S4D": "legs", "S4-PTD, optimised": "ptd", "S4-PTD, closed form": "ptd-closed"}
NAMES = ("S4", *INITS)


def optimised(n: int) -> Diagonalization:
    """The perturbation that init="ptd" takes at order n."""
    return perturb_then_diagonalize(*hippo.legs(n), paired=True)


def closed_form(n: int) -> Diagonalization:
    """The perturbation that init="ptd-closed" takes at order n."""
    return perturb_then_diagonalize(*hippo.legs(n), method="closed-form")


def system(name: str, n: int) -> tuple[Array, Array]:
    """A (n, n) and B (n,), real, of one of NAMES: x' = A x + B u.

    >>> A, B = system("S4D", 2)
    >>> bool(np.allclose(A + A.T, -np.eye(2))), B.round(3).tolist()
    (True, [0.5, 0.866])
    """
    A, B = hippo.legs(n)
    if name == "S4":
        return A, B
    if name == "S4D":
        return hippo.normal_plus_low_rank("legs", n)[0], B / 2
    found = optimised(n) if name == "S4-PTD, optimised" else closed_form(n)
    assert found.B is not None  # it was passed in
    return A + found.E, found.B


def averaging_row(n: int) -> Array:
    """The output row C = B^T/||B||^2 (n,), for which G_S4(s) = (1 - r_n(s))/n^2."""
    _, B = hippo.legs(n)
    return B / (B @ B)


def first_state(n: int) -> Array:
    """The output row e_0 (n,), for which G_S4(s) = 1/(s + 1) at every order: the mean of the weighted past."""
    return np.eye(n)[0]
