"""Derived tolerances: all of them are computed in double precision, whatever dtype they are for."""

from __future__ import annotations

import numpy as np
import pytest

from ptd_conformance import oracle, tolerance
from ptd_conformance.cases import SUBJECTS, case


@pytest.mark.parametrize("subject", SUBJECTS)
def test_bounds_of_gradients_are_in_proportion_to_eps_to_the_last_digit(subject: str) -> None:
    c = case(subject, 9)
    c = c.with_call(state=c.state, form="convolution")

    def bounds(dtype: str) -> np.ndarray:
        along = {name: oracle.direction(c, name) for name in oracle.arguments(c)}
        return np.array([tolerance.gradient(c, name, v, *oracle.weights(c), dtype) for name, v in along.items()])

    eps = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
    np.testing.assert_array_equal(bounds("float32") / eps["float32"], bounds("float64") / eps["float64"])
