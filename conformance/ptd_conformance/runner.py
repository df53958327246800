"""Running clauses: every clause on every subject in every dtype comes to one outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import ptd
from ptd.contract import Backend, Unsupported

from . import clauses, products, record
from .bench import Bench
from .clause import CLAUSES, Clause
from .outcome import Done, Outcome, Result, worst
from .products import FULL, Products

__all__ = ["CLAUSES", "Begin", "Here", "Trial", "clauses", "run", "trials", "trials_of"]

#: Told what a run begins with now, in words.
Begin = Callable[[str], Any]


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
        if products.covers(clause.id):
            yield from trials_of(clause, backend.dtypes, products)


def trials_of(clause: Clause, offered: Sequence[str], products: Products = FULL) -> Iterator[Trial]:
    """The trials of a clause on a backend that offers some dtypes."""
    for dtype in ("float32",) if products.eps else clause.dtypes(tuple(offered)):
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


class Here:
    """A backend that runs clauses in this process.

    Args:
        backend: its name, or module:object.
        rounded: the name of its products.
        jobs: threads that trials are spread over.

    Raises:
        ValueError: no such backend, or none with such products.
    """

    def __init__(self, backend: str, rounded: str, jobs: int):
        found = ptd.backend(backend)
        self.jobs, self.products = jobs, products.chosen(rounded, found)
        self.head = record.head(found, self.products)
        self.benches = {dtype: Bench(found, dtype, self.products) for dtype in found.dtypes}

    def outcomes(self, trials: Sequence[Trial], begin: Begin = str) -> Iterator[tuple[Result, float]]:
        """Each trial's result, in the order of trials, and how long it took in seconds."""

        def timed(trial: Trial) -> tuple[Result, float]:
            begin(f"{trial.clause.id} {trial.subject}")
            start = time.perf_counter()
            return run(trial, self.benches[trial.dtype]), time.perf_counter() - start

        if self.jobs == 1:  # a result is out before the next trial begins, whatever that one does to the process
            yield from map(timed, trials)
            return
        with ThreadPoolExecutor(self.jobs) as pool:
            yield from pool.map(timed, trials)

    def clauses(self, chosen: Mapping[str, Sequence[Trial]], begin: Begin) -> Iterator[Done]:
        """One clause after the other; threads that have nothing left to do in one go on with the next."""
        outcomes = self.outcomes([trial for trials in chosen.values() for trial in trials], begin)
        for clause, trials in chosen.items():
            pairs = [next(outcomes) for _ in trials]
            yield Done(clause, tuple(result for result, _ in pairs), sum(seconds for _, seconds in pairs))
