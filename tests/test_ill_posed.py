"""The page of other ill-posed matrices says what the solver does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

import ill_posed
from ptd import hippo

PAGE = (Path(__file__).parent.parent / "docs/ill-posed.md").read_text()
TABLE = PAGE.partition(ill_posed.START)[2].partition(ill_posed.END)[0]
ROWS = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in TABLE.strip().splitlines()[2:]]
SMALL = [row for row in ROWS if int(row[1]) <= 12]
EXAMPLES = {example.name: example for example in ill_posed.EXAMPLES}


def test_table_has_every_example_at_every_order():
    assert [row[:2] for row in ROWS] == [(e.name, str(n)) for e in ill_posed.EXAMPLES for n in e.orders]


@pytest.mark.parametrize("row", SMALL, ids=" ".join)
def test_row_is_what_the_solver_finds(row):
    """The budget in full, kappa to three per cent: L-BFGS amplifies the rounding of another BLAS."""
    example, n = EXAMPLES[row[0]], int(row[1])
    again = ill_posed.cells(example, n, ill_posed.solve(example, n))
    assert float(again[3]) == pytest.approx(float(row[3]), rel=0.03)
    assert [float(x) for x in again[4:6]] == pytest.approx([float(x) for x in row[4:6]], rel=0.01)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_condition_number_falls_within_the_budget_and_stability_is_kept(row):
    name, _, before, after, _, ratio, unstable, perturbed = row
    assert float(after) < min(25, float(before.removeprefix("> ")))
    assert float(ratio) <= EXAMPLES[name].ratio
    assert float(perturbed) < 0 or float(unstable) >= 0


def test_example_of_the_page_runs():
    example = re.search(r"```python\n(.*?)```", PAGE, re.S).group(1)
    namespace: dict = {}
    exec(compile(example, "ill-posed.md", "exec"), namespace)
    found = namespace["found"]
    assert found.condition_number == pytest.approx(21.5, rel=0.05)
    assert found.perturbation_norm <= 0.04
    assert found.backward_error < 1e-13


def test_barely_stable_jordan_block_has_the_lower_bound_that_the_page_states():
    """||exp(tA)|| - e^{wt} (e^{t ||E||} - 1) at its largest, for n = 32 and ||E|| = 0.04 ||A||."""
    A = ill_posed.jordan(32, -0.5)
    size, w = 0.04 * np.linalg.norm(A, 2), np.linalg.eigvalsh((A + A.T) / 2).max()
    bounds = [
        np.linalg.norm(scipy.linalg.expm(t * A), 2) - np.exp(w * t) * np.expm1(size * t) for t in np.arange(0, 20, 0.5)
    ]
    assert f"{max(bounds):.1f}" in PAGE


def test_named_matrices_are_the_textbooks():
    assert np.array_equal(ill_posed.frank(4), [[4, 3, 2, 1], [3, 3, 2, 1], [0, 2, 2, 1], [0, 0, 1, 1]])
    assert np.array_equal(ill_posed.grcar(3), [[1, 1, 1], [-1, 1, 1], [0, -1, 1]])
    assert np.allclose(np.poly(ill_posed.companion(3)), [1, -3, 3, -1])
    assert not np.linalg.matrix_power(ill_posed.jordan(5), 5).any()
    assert not np.linalg.matrix_power(ill_posed.causal_recurrent(6), 6).any()
    assert np.array_equal(EXAMPLES["HiPPO-LegT"].matrix(8), hippo.legt(8)[0])


def test_page_without_the_markers_is_refused():
    with pytest.raises(ValueError, match=r"^page: expected the lines .*; add them$"):
        ill_posed.with_table("no table here", "")
