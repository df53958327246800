"""One run of the suite: its clauses in order, whoever runs them, and a record that grows with each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import record
from .clause import CLAUSES
from .outcome import Done
from .processes import Processes
from .products import PRODUCTS
from .runner import Begin, Here, Trial, trials_of

#: Seconds a trial takes, roughly, by what it needs (measured with torch on a CPU), and one that needs none of these.
ROUGHLY, BRIEFLY = {"compilation": 2.0, "training": 1.0, "gradients": 0.25}, 0.1


def records(
    runner: Here | Processes, clauses: Iterable[str], path: Path | None, resume: bool, note: str, begin: Begin
) -> Iterator[record.Record]:
    """The record of what has run: at the start, and after every clause, when it is on disk.

    Args:
        runner: what runs the clauses.
        clauses: ids of those to run.
        path: the file of the record, or None. Times in a record that is there decide the order.
        resume: go on with the record in path, if there is one: clauses that it has, failed or not, are kept.
        note: what was special about the run; that of the record gone on with by default.
        begin: told what begins.

    Raises:
        ValueError: the record to go on with is of another backend, device, versions or products, or is no record.
    """
    start, old = time.perf_counter(), _old(path, resume)
    done, before = {}, 0.0
    if old and resume:
        record.check_same(old, runner.head)
        done, before, note = record.clauses(old), old["seconds"], note or old["note"]
    yield record.of_clauses(runner.head, done, before, note)
    chosen = {clause: _trials(clause, runner.head) for clause in clauses if clause not in done}
    for each in runner.clauses(_longest_first(chosen, old), begin):
        done[each.clause] = each
        made = record.of_clauses(runner.head, done, before + time.perf_counter() - start, note)
        if path:
            record.write(path, made)
        yield made


def _old(path: Path | None, resume: bool) -> record.Record | None:
    """The record in path; unless the run goes on with it, one that cannot be read is none."""
    if path is None or not path.is_file():
        return None
    with contextlib.nullcontext() if resume else contextlib.suppress(ValueError):
        return record.read(path)
    return None


def _trials(clause: str, head: record.Record) -> list[Trial]:
    return list(trials_of(CLAUSES[clause], head["dtypes"], PRODUCTS[head["products"]]))


def _longest_first(chosen: dict[str, list[Trial]], old: record.Record | None) -> dict[str, list[Trial]]:
    """The clauses by their times in an earlier run, or roughly: what is long begins early."""
    known = record.clauses(old) if old else {}

    def seconds(clause: str) -> float:
        measured = known.get(clause, Done(clause, (), None)).seconds
        if measured is not None:
            return measured
        return len(chosen[clause]) * ROUGHLY.get(CLAUSES[clause].needs or "", BRIEFLY)

    return {clause: chosen[clause] for clause in sorted(chosen, key=seconds, reverse=True)}
