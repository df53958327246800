"""The commands ``ptd conformance`` and ``ptd report``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

#: Seconds that a clause in a process of its own may take if --limit says nothing else.
LIMIT = 1800.0


def conformance(
    backend: Annotated[str | None, typer.Option(help="a registered backend, or module:object")] = None,
    products: Annotated[str, typer.Option(help="full; fast, as TF32; bfloat16, models' activations")] = "full",
    only: Annotated[list[str] | None, typer.Option(help="clause ids to run, for example L1; all by default")] = None,
    json: Annotated[
        Path | None, typer.Option(help="write the record of the run to this file, clause by clause")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on with the record in --json: run the clauses it lacks")] = False,
    note: Annotated[str, typer.Option(help="what was special about the run, for the report")] = "",
    jobs: Annotated[int, typer.Option(help="threads; pays where a compiler that releases the lock dominates")] = 1,
    processes: Annotated[int, typer.Option(help="worker processes for the clauses; 0 runs them in this one")] = 0,
    limit: Annotated[
        float | None, typer.Option(help=f"seconds a clause may take with --processes; {LIMIT:g} by default")
    ] = None,
    lra: Annotated[bool, typer.Option(help="check the recorded Long Range Arena accuracies instead")] = False,
    results: Annotated[Path, typer.Option(help="the records that --lra checks")] = Path("conformance/results/lra"),
) -> None:
    """Hold a backend to the reference, or recorded accuracies to the published ones; exit status 1 on a failure."""
    if lra:
        sys.exit(_check_accuracies(results))
    if backend is None:
        raise ValueError("backend: expected a backend, got none; pass --backend NAME, or --lra for recorded accuracies")

    _check(resume and json is None, "resume", "a record to go on with", "none", "pass --json FILE")
    _check(jobs < 1, "jobs", "threads, 1 or more", jobs)
    _check(processes < 0, "processes", "worker processes, or 0", processes)
    _check(limit is not None and not processes, "limit", "worker processes to hold to it", 0, "pass --processes N")
    _check(limit is not None and not limit > 0, "limit", "seconds, above 0", limit)

    from ptd import checks
    from ptd.console import Lines, bar
    from ptd.parameters import check_replaceable

    from . import record, report, session
    from .products import PRODUCTS
    from .runner import CLAUSES

    if json:
        check_replaceable("json", json)
    checks.choice("products", products, PRODUCTS)
    for clause in only or ():
        checks.choice("only", clause, CLAUSES)
        bound = PRODUCTS[products].covers(clause)
        _check(not bound, "only", f"clauses with a bound for {products} products", clause, "leave it out")
    clauses = [clause for clause in CLAUSES if PRODUCTS[products].covers(clause) and (not only or clause in only)]
    console, made = Lines(), {}
    with (
        _runner((backend, products, jobs), min(processes, len(clauses)), limit or LIMIT) as runner,
        bar(console) as progress,
    ):
        task = progress.add_task(backend, total=len(clauses))

        def begin(what: str) -> None:
            progress.update(task, description=f"{backend} {what}")

        for made in session.records(runner, clauses, json, resume, note, begin):
            progress.update(task, completed=len({row["clause"] for row in made["results"]} & {*clauses}))
    found = record.parsed(made)
    report.print_table(console, [found], only or CLAUSES)
    if json:
        console.say(f"wrote {json}")
    sys.exit(_print_failures(console, found["results"]))


def _check(wrong: bool, argument: str, expected: str, got: object, remedy: str = "") -> None:
    from ptd import checks

    if wrong:
        raise checks.fail(argument, expected, got, remedy)


def _runner(arguments: tuple[str, str, int], processes: int, limit: float) -> AbstractContextManager[Any]:
    from .processes import Processes
    from .runner import Here

    return Processes(arguments, processes, limit) if processes else contextlib.nullcontext(Here(*arguments))


def _print_failures(console: Any, results: Iterable[Any]) -> int:
    """Print what failed; 1 if anything did."""
    from rich.text import Text

    from .outcome import Outcome
    from .runner import CLAUSES

    failed = [result for result in results if result.outcome is Outcome.FAIL]
    for result in failed:
        sentence = f"{result.subject} {result.dtype}: {CLAUSES[result.clause].text} {result.reason}"
        console.say(Text.assemble(("FAIL", "red"), f" {result.clause} {sentence}"))
    return int(bool(failed))


def _check_accuracies(folder: Path) -> int:
    """Print the standings of recorded runs; 1 if any misses its target or diverged."""
    from rich.table import Table
    from rich.text import Text

    from ptd.console import Lines

    from .lra import results as recorded
    from .lra import standings as accuracies

    if not folder.is_dir():
        raise ValueError(f"results: expected a folder of records, got {folder}; pass --results FOLDER")
    found, console = accuracies.standings(recorded.read_all(folder)), Lines()
    # Devices and notes are the report's: in a terminal they leave the other columns no room.
    shown = [i for i, column in enumerate(accuracies.COLUMNS) if column not in ("device", "note")]
    table = Table(*(accuracies.COLUMNS[i] for i in shown), title="Long Range Arena")
    for row in accuracies.rows(s for s in found if s.outcome != "not run"):
        table.add_row(*(row[i] for i in shown))
    console.print(table)
    for task, recipes, *_, note in accuracies.rows(s for s in found if s.outcome == "not run"):
        console.say("; ".join(filter(None, [f"not run: {task} {recipes}", note])))
    bad = [s for s in found if s.outcome in ("missed", "diverged")]
    for s in bad:
        sentence = "; ".join(filter(None, [f" {s.task} {s.recipe} on {s.backend}: {s.outcome}", s.note]))
        console.say(Text.assemble(("FAIL", "red"), sentence))
    for title, remark in accuracies.remarks(bad).items():
        console.say(f"{title}: {remark}")
    return int(bool(bad))


def report(
    results: Annotated[list[Path], typer.Argument(help="records, or folders of records, to merge")],
    html: Annotated[Path, typer.Option(help="the page to write")] = Path("report/index.html"),
    readme: Annotated[Path | None, typer.Option(help="a README whose tables are brought up to date")] = None,
) -> None:
    """Merge conformance records into one self-contained page."""
    from ptd.console import Lines
    from ptd.extras import require
    from ptd.parameters import replace_file

    from . import record, speed
    from . import report as pages
    from .lra import standings

    require("jinja2", "report", "test")
    files = [file for path in results for file in (pages.records_in(path) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"results: expected records, got none in {', '.join(map(str, results))}; run ptd conformance")
    records = [record.read(file) for file in files]
    folders = [path / "lra" for path in results if path.is_dir()]  # without one, what is to be reached still shows
    accuracies = [table for folder in folders for table in standings.section(folder)]
    measured = [speed.table(file) for path in results for file in sorted((path / "speed").glob("*.json"))]
    replace_file(html, pages.page(records, lra=accuracies, speed=measured).encode())
    if readme:
        text = pages.with_table(readme.read_text(encoding="utf-8"), pages.SUPPORT, pages.support_table(records))
        if pages.START.format(pages.ACCURACIES) in text:  # a backend's own repository may record none
            text = pages.with_table(text, pages.ACCURACIES, pages.markdown(standings.summary(folders)))
        replace_file(readme, text.encode())
    console = Lines()
    pages.print_table(console, records)
    console.say(f"wrote {html}")
