"""The reference's answers: outputs in complex128, derivatives by differences in extended precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptd

from .cases import Case, generic

Values = NDArray[np.float64]

#: Central differences of order 6: offsets in units of the step, and weights.
STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
STEP = 2e-4


def outputs(case: Case) -> tuple[Values, Values]:
    """y and the final state of the reference, by the sequential scan."""
    call = case.call | {"form": "scan", "return_state": True}
    return ptd.backend("numpy").apply(case.layer, case.params, case.u, **call)


def weights(case: Case) -> tuple[Values, Values]:
    """Random weights of the loss <w, y> + <w_state, final state>."""
    rng = np.random.default_rng(1)
    return generic(rng, case.u.shape), generic(rng, case.layer.state_shape(case.u.shape[:-2]))


def arguments(case: Case) -> dict[str, Values]:
    """What the loss is differentiated by: every leaf, the input u, and the initial state."""
    state = case.call.get("state")
    return {**case.params, "u": case.u} | ({} if state is None else {"state": state})


def direction(case: Case, name: str) -> Values:
    """A random direction of one argument; relative in Lambda_re, so that no difference leaves the half-plane."""
    signs = np.where(np.random.default_rng(2).uniform(size=arguments(case)[name].shape) < 0.5, -1.0, 1.0)
    return signs * np.abs(case.params["Lambda_re"]) if name == "Lambda_re" else signs


def derivative(case: Case, name: str) -> float:
    """The derivative of the loss along direction(case, name).

    In 80-bit extended precision its error is about 1e-16 relative to the loss; see difference_error.
    """
    wide = {n: v.astype(np.longdouble) for n, v in arguments(case).items()}
    along = direction(case, name).astype(np.longdouble)
    w, w_state = weights(case)

    def loss(t: float) -> np.longdouble:
        moved = wide | {name: wide[name] + np.longdouble(t * STEP) * along}
        call: dict[str, Any] = case.call | {"form": "scan", "return_state": True}
        call |= {"state": moved.pop("state")} if "state" in moved else {}
        u = moved.pop("u")
        y, x = case.layer.apply(moved, u, **call)
        return np.sum(w * y) + np.sum(w_state * x)

    terms = (weight * (loss(offset) - loss(-offset)) for offset, weight in STENCIL)
    return float(sum(terms) / np.longdouble(STEP))


def difference_error(size: float) -> float:
    """The rounding error of derivative for a loss whose terms sum to size in absolute value."""
    return 8 * float(np.finfo(np.longdouble).eps) * size / STEP
