"""Running clauses: every clause on every subject in every dtype comes to one outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ptd.contract import Backend, Unsupported

from . import clauses
from .bench import Bench
from .clause import CLAUSES, Clause
from .outcome import Outcome, Result, worst
from .products import FULL, Products

__all__ = ["Trial", "clauses", "run", "trials"]


@dataclass(frozen=True)
class Trial:
    """One clause on one subject in one dtype."""

    clause: Clause
    subject: str
    dtype: str

    @property
    def name(self) -> str:
        """clause-subject-dtype, as test ids show it."""
        return f"{self.clause.id}-{self.clause.name}-{self.subject}-{self.dtype}"


def trials(backend: Backend, products: Products = FULL) -> Iterator[Trial]:
    """All trials of a backend, in the order of the report; narrower products are float32's."""
    for clause in CLAUSES.values():
        if not products.covers(clause.id):
            continue
        for dtype in ("float32",) if products.eps else clause.dtypes(backend.dtypes):
            for subject in clause.subjects:
                yield Trial(clause, subject, dtype)


def run(trial: Trial, bench: Bench) -> Result:
    """The result of one trial.

    What a backend declares must show: a clause whose feature it lacks has to raise Unsupported, a clause it is known to
    fail has to fail. An unexpected pass, or Unsupported without the declaration, fails.
    """
    lack = bench.backend.unsupported.get(trial.clause.needs or "")
    known = bench.backend.known_failures
    defect = known.get(f"{trial.clause.id}-{trial.subject}", known.get(trial.clause.id, ""))
    key = (trial.clause.id, trial.subject, trial.dtype)
    try:
        allowed = bench.products.allowed(bench.backend)
        with bench.backend.precision(trial.dtype), allowed, np.errstate(all="ignore"):
            measurements = list(trial.clause.check(bench, trial.subject))
    except Unsupported as error:
        if lack:
            return Result(*key, Outcome.UNSUPPORTED, reason=lack)
        return Result(*key, Outcome.FAIL, reason=f"raised Unsupported, but the backend declares no such lack: {error}")
    except Exception as error:
        return Result(*key, Outcome.FAIL, reason=f"{type(error).__name__}: {error}")
    if not measurements:
        return Result(*key, Outcome.NOT_RUN, reason="the clause says nothing about this subject")
    found = worst(measurements)
    if lack or (defect and found.holds):
        declared = f"declared unsupported: {lack}" if lack else f"declared a known failure: {defect}"
        return Result(*key, Outcome.FAIL, found, f"unexpected pass; {declared}")
    if found.holds:
        return Result(*key, Outcome.PASS, found)
    if defect:
        return Result(*key, Outcome.EXPECTED_FAIL, found, defect)
    return Result(*key, Outcome.FAIL, found, f"{found.label}: {found.ratio:.3g} times the allowed error")
