"""Runs of the suite that survive: workers that die or hang, runs that are cut and gone on with."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptd_conformance import command, record, report, session
from ptd_conformance.clause import CLAUSES
from ptd_conformance.outcome import Outcome
from ptd_conformance.processes import Processes
from ptd_conformance.record import Record
from ptd_conformance.runner import Here

FEW = ("E1", "K1", "L1", "M2")
FULL = ("numpy", "full", 1)


def last(records: Iterator[Record]) -> Record:
    """The record at the end of a run."""
    *_, made = records
    return record.parsed(made)


def here(path: Path | None = None, clauses: tuple[str, ...] = FEW, resume: bool = False) -> Iterator[Record]:
    return session.records(Here(*FULL), clauses, path, resume, "", str)


def spread(backend: str, count: int, limit: float = 60, clauses: tuple[str, ...] = FEW) -> Record:
    with Processes((backend, "full", 1), count, limit) as workers:
        return last(session.records(workers, clauses, None, False, "", str))


def failures(made: Record) -> list[tuple[str, str, str]]:
    return [(r.clause, r.subject, r.reason) for r in made["results"] if r.outcome is Outcome.FAIL]


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """The record of a run that was cut after its second clause."""
    path = tmp_path / "cut.json"
    run = here(path)
    for _ in range(3):
        next(run)
    run.close()
    return path


def test_processes_give_the_results_of_one_in_the_order_of_the_suite() -> None:
    assert spread("numpy", 2)["results"] == last(here())["results"]


def test_worker_that_dies_is_one_failed_trial_and_the_run_goes_on() -> None:
    made = spread("failing:dying", 1)
    assert failures(made) == [("M2", "s4d-zoh", "the worker died with exit code 3")]
    assert {r.clause for r in made["results"] if r.outcome is Outcome.PASS} == {*FEW}


def test_clause_beyond_the_limit_is_one_failed_trial_named_so() -> None:
    made = spread("failing:hanging", 2, limit=4)
    assert failures(made) == [("M2", "s4d-zoh", "the worker took more than 4 s; pass a larger limit")]


def test_new_worker_takes_over_after_a_death(tmp_path: Path) -> None:
    """M2 is the longest of the record that is there, so it runs first, and its worker alone."""
    made = last(here(tmp_path / "few.json", ("M2",)))
    made["clause seconds"] = {"M2": 1e3}
    begun: list[str] = []
    record.write(tmp_path / "few.json", record.of_clauses(made, record.clauses(made), 0.0))
    with Processes(("failing:dying", "full", 1), 1, 60) as workers:
        made = last(session.records(workers, FEW, tmp_path / "few.json", False, "", begun.append))
    assert (begun[0], len(failures(made))) == ("M2", 1)
    assert {r.clause for r in made["results"]} == {*FEW}


def test_compilers_begin_first_where_no_time_is_known() -> None:
    begun: list[str] = []
    last(session.records(Here(*FULL), ("E1", "L1", "M9"), None, False, "", begun.append))
    assert list(dict.fromkeys(what.split()[0] for what in begun)) == ["M9", "L1", "E1"]


def test_backend_that_kills_its_process_while_loading_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying_at_once.py").write_text("import os\n\nos._exit(5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"^backend: expected one that loads .* died with exit code 5; run without"):
        spread("dying_at_once:backend", 1)


def test_backend_that_does_not_load_is_the_same_line_as_in_one_process() -> None:
    with pytest.raises(ValueError, match=r"^name: expected one of .*numpy.*, got 'nope'"):
        spread("nope", 1)


def test_cut_run_leaves_whole_clauses_and_the_report_shows_the_others_as_not_run(cut: Path) -> None:
    made = record.read(cut)
    cells = {name: report.cell(CLAUSES[name], made) for name in FEW}
    assert sorted(cell.outcome.value for cell in cells.values()) == ["not-run", "not-run", "pass", "pass"]
    complete = {name: cell.results for name, cell in cells.items() if cell.results}
    assert complete == {name: done.results for name, done in record.clauses(last(here())).items() if name in complete}


def test_resumed_run_runs_what_is_lacking_and_no_more(cut: Path) -> None:
    begun: list[str] = []
    lacking = {*FEW} - {*record.clauses(record.read(cut))}
    made = last(session.records(Here(*FULL), FEW, cut, True, "", begun.append))
    assert {what.split()[0] for what in begun} == lacking
    assert made["results"] == record.read(cut)["results"] == last(here())["results"]
    assert {*made["clause seconds"]} == {*FEW}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("backend", "torch", "backend torch"),
        ("device", "NVIDIA H100", "device NVIDIA H100"),
        ("versions", {"ptd": "0.0.1"}, "versions ptd 0.0.1"),
        ("products", "fast", "products fast"),
    ],
)
def test_record_of_another_run_is_not_gone_on_with(cut: Path, name: str, value: object, words: str) -> None:
    made = record.read(cut)
    record.write(cut, record.of_clauses(made | {name: value}, record.clauses(made), 0.0))
    before = cut.read_bytes()
    with pytest.raises(ValueError, match=rf"^resume: expected a record of {name} .*, got one of {words}; write to"):
        last(here(cut, resume=True))
    assert cut.read_bytes() == before


def test_record_of_another_specification_is_not_gone_on_with(cut: Path) -> None:
    cut.write_text(cut.read_text().replace('"spec": "1"', '"spec": "0"'))
    with pytest.raises(ValueError, match=r"^cut.json: expected a conformance record of spec 1, got one of spec 0; run"):
        last(here(cut, resume=True))


def test_resumed_failure_still_fails(cut: Path) -> None:
    made = record.read(cut)
    first = next(iter(record.clauses(made).values()))
    failed = dataclasses.replace(first.results[0], outcome=Outcome.FAIL, worst=None, reason="as before")
    done = {first.clause: dataclasses.replace(first, results=(failed, *first.results[1:]))}
    record.write(cut, record.of_clauses(made, done, 0.0))
    with pytest.raises(SystemExit) as ended:
        command.conformance(backend="numpy", only=[*FEW], json=cut, resume=True)
    assert ended.value.code == 1


def test_killed_run_keeps_its_record_and_leaves_no_workers(tmp_path: Path) -> None:
    """The workers hold the run's standard output: it ends when the last of them does."""
    path = tmp_path / "killed.json"
    arguments = ["--backend", "failing:hanging", "--processes", "2", "--json", str(path)]
    only = [part for clause in FEW for part in ("--only", clause)]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from ptd.cli import main; main()"
    run = subprocess.Popen([sys.executable, "-c", code, "conformance", *arguments, *only], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (path.is_file() and len(record.clauses(record.read(path))) == 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    run.kill()
    run.communicate(timeout=20)
    assert {*record.clauses(record.read(path))} == {*FEW} - {"M2"}


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"resume": True}, "resume"),
        ({"limit": 5.0}, "limit"),
        ({"limit": -1.0, "processes": 1}, "limit"),
        ({"processes": -1}, "processes"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(options: dict, argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected [^\n]*$"):
        command.conformance(backend="numpy", **options)
