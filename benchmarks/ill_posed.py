"""Ill-conditioned diagonalisations other than HiPPO's, perturbed: kappa before and after, and the size of E.

    python benchmarks/ill_posed.py                              # print the table, under a minute
    python benchmarks/ill_posed.py --write docs/ill-posed.md    # bring the table of the page up to date

Exit status 1 if any row does not converge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

from ptd import Diagonalization, NotConverged, hippo, perturb_then_diagonalize

START, END = "<!-- table: made by python benchmarks/ill_posed.py --write docs/ill-posed.md -->", "<!-- end of table -->"
RATIO = 0.04
#: A computed kappa beyond this is rounding: the matrix is defective as far as float64 can tell.
MEANINGLESS = 1e14


def jordan(n: int, eigenvalue: float = 0.0) -> np.ndarray:
    """One Jordan block (n, n); at eigenvalue 0 the nilpotent shift."""
    return eigenvalue * np.eye(n) + np.eye(n, k=1)


def grcar(n: int) -> np.ndarray:
    """Grcar's Toeplitz matrix: -1 below the diagonal, 1 on it and on three diagonals above."""
    return sum(np.eye(n, k=k) for k in range(4)) - np.eye(n, k=-1)


def toeplitz(n: int) -> np.ndarray:
    """Complex, non-normal, banded: 2i below the diagonal, 1 and 0.7 on the second and third above it."""
    return scipy.linalg.toeplitz([0, 2j] + [0] * (n - 2), [0, 0, 1, 0.7] + [0] * (n - 4))


def companion(n: int) -> np.ndarray:
    """Of the polynomial (z - 1)^n: similar to one Jordan block."""
    return scipy.linalg.companion(np.poly(np.ones(n)))


def frank(n: int) -> np.ndarray:
    """Frank's upper Hessenberg matrix, n - max(i, j); its small eigenvalues are ill-conditioned."""
    i = np.arange(n)
    return np.where(i[None, :] < i[:, None] - 1, 0.0, n - np.maximum(i[:, None], i[None, :]))


def recurrent(n: int) -> np.ndarray:
    """Random recurrent weights: independent normal entries of variance 1/n, seed 0."""
    return np.random.default_rng(0).standard_normal((n, n)) / np.sqrt(n)


def causal_recurrent(n: int) -> np.ndarray:
    """Random recurrent weights whose units only see earlier ones: strictly lower triangular, so nilpotent."""
    return np.tril(recurrent(n), -1)


@dataclass(frozen=True)
class Example:
    """A row: what it is called, its matrix by order, the orders, and the budget ||E||_2/||A||_2."""

    name: str
    matrix: Callable[[int], np.ndarray]
    orders: tuple[int, ...]
    ratio: float = RATIO


EXAMPLES = (
    Example("Jordan block at 0 (nilpotent shift)", jordan, (2, 4, 8, 16, 32, 64)),
    Example("Jordan block at -1", lambda n: jordan(n, -1.0), (2, 4, 8, 16, 32, 64)),
    Example("Jordan block at -1/2", lambda n: jordan(n, -0.5), (8, 32, 64), 0.45),
    Example("Grcar", grcar, (16, 32, 64)),
    Example("Toeplitz, complex", toeplitz, (12, 24, 48)),
    Example("companion of (z - 1)^n", companion, (6, 12, 16)),
    Example("Frank", frank, (8, 16, 32)),
    Example("random recurrent", recurrent, (16, 64)),
    Example("random recurrent, causal", causal_recurrent, (16, 64)),
    Example("HiPPO-LegT", lambda n: hippo.legt(n)[0], (8, 32)),
)
HEADINGS = ("matrix", "n", "kappa before", "kappa after", "E, 2-norm", "relative to A", "max Re before", "max Re after")


def solve(example: Example, n: int, cache: bool = False) -> Diagonalization:
    """The perturbed matrix of one row.

    Raises:
        NotConverged: as perturb_then_diagonalize.
    """
    A = example.matrix(n)
    return perturb_then_diagonalize(A, size=example.ratio * float(np.linalg.norm(A, 2)), cache=cache)


def cells(example: Example, n: int, found: Diagonalization) -> tuple[str, ...]:
    """One row as text."""
    A = example.matrix(n)
    before = np.linalg.cond(np.linalg.eig(A)[1])
    shown = f"> {MEANINGLESS:.0e}" if not before < MEANINGLESS else f"{before:.2g}"
    numbers = found.condition_number, found.perturbation_norm, found.relative_perturbation_norm
    kappa, norm, ratio = (f"{x:.3g}" for x in numbers)
    return example.name, str(n), shown, kappa, norm, ratio, _abscissa(A), f"{found.spectral_abscissa:.3g}"


def _abscissa(A: np.ndarray) -> str:
    """max Re Lambda of A, exact for a triangular one: its computed eigenvalues may be far off."""
    triangular = not np.tril(A, -1).any() or not np.triu(A, 1).any()
    return f"{(np.diag(A) if triangular else np.linalg.eigvals(A)).real.max() + 0.0:.3g}"


def rows(examples: tuple[Example, ...] = EXAMPLES) -> Iterator[tuple[str, ...]]:
    """Every row as text, one after the other."""
    for example in examples:
        for n in example.orders:
            yield cells(example, n, solve(example, n))


def markdown(body: list[tuple[str, ...]]) -> str:
    """The table."""
    lines = [HEADINGS, tuple("---" if k == 0 else "---:" for k in range(len(HEADINGS))), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_table(page: str, table: str) -> str:
    """A page with the text between START and END replaced."""
    before, _, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"page: expected the lines {START!r} and {END!r}, got none; add them")
    return f"{before}{START}\n\n{table}\n\n{end}{after}"


def main() -> int:
    """Print the table, write it where asked; 1 if a row does not converge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    chosen: Any = parser.parse_args()
    body: list[tuple[str, ...]] = []
    try:
        for row in rows():
            print("  ".join(row), flush=True)
            body.append(row)
    except NotConverged as error:
        print(f"after {len(body)} rows: {error}", file=sys.stderr)
        return 1
    if chosen.write:
        chosen.write.write_text(with_table(chosen.write.read_text(), markdown(body)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
