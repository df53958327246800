"""The commands ``ptd conformance`` and ``ptd report``."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer


def conformance(
    backend: Annotated[str | None, typer.Option(help="a registered backend, or module:object")] = None,
    products: Annotated[str, typer.Option(help="full; fast, as TF32; bfloat16, models' activations")] = "full",
    only: Annotated[list[str] | None, typer.Option(help="clause ids to run, for example L1; all by default")] = None,
    json: Annotated[Path | None, typer.Option(help="write the record of the run to this file")] = None,
    note: Annotated[str, typer.Option(help="what was special about the run, for the report")] = "",
    jobs: Annotated[int, typer.Option(help="threads; pays where a compiler that releases the lock dominates")] = 1,
    lra: Annotated[bool, typer.Option(help="check the recorded Long Range Arena accuracies instead")] = False,
    results: Annotated[Path, typer.Option(help="the records that --lra checks")] = Path("conformance/results/lra"),
) -> None:
    """Hold a backend to the reference, or recorded accuracies to the published ones; exit status 1 on a failure."""
    if lra:
        sys.exit(_check_accuracies(results))
    if backend is None:
        raise ValueError("backend: expected a backend, got none; pass --backend NAME, or --lra for recorded accuracies")

    from rich.console import Console
    from rich.progress import Progress

    import ptd
    from ptd import checks

    from . import record, report
    from .bench import Bench
    from .clause import CLAUSES
    from .outcome import Outcome, Result
    from .products import PRODUCTS
    from .runner import Trial, run, trials

    found, console = ptd.backend(backend), Console()
    for clause in only or ():
        checks.choice("only", clause, CLAUSES)
    checks.choice("products", products, PRODUCTS)
    rounded = PRODUCTS[products]
    if rounded.activations and rounded.activations not in found.kernels.activations:
        raise ValueError(
            f"products: expected full or fast for {found.name}, got {products}; it has no such activations"
        )
    chosen = [trial for trial in trials(found, rounded) if not only or trial.clause.id in only]
    benches = {dtype: Bench(found, dtype, rounded) for dtype in found.dtypes}
    start = time.perf_counter()
    with Progress(console=console, transient=True) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task(found.name, total=len(chosen))

        def one(trial: Trial) -> Result:
            result = run(trial, benches[trial.dtype])
            progress.update(task, advance=1, description=f"{found.name} {trial.clause.id} {trial.subject}")
            return result

        results = list(pool.map(one, chosen))
    made = record.of(found, results, time.perf_counter() - start, note, rounded)
    if json:
        record.write(json, made)
    report.print_table(console, [made | {"results": results}])
    for result in results:
        if result.outcome is Outcome.FAIL:
            text = CLAUSES[result.clause].text
            console.print(f"[red]FAIL[/] {result.clause} {result.subject} {result.dtype}: {text} {result.reason}")
    sys.exit(any(result.outcome is Outcome.FAIL for result in results))


def _check_accuracies(folder: Path) -> int:
    """Print the standings of recorded runs; 1 if any misses its target or diverged."""
    from rich.console import Console
    from rich.table import Table

    from .lra import results as recorded
    from .lra import standings as accuracies

    if not folder.is_dir():
        raise ValueError(f"results: expected a folder of records, got {folder}; pass --results FOLDER")
    found, console = accuracies.standings(recorded.read_all(folder)), Console()
    table = Table(*accuracies.COLUMNS, title="Long Range Arena")
    for row in accuracies.rows(found):
        table.add_row(*row)
    console.print(table)
    bad = [s for s in found if s.outcome in ("missed", "diverged")]
    for s in bad:
        console.print(f"[red]FAIL[/] {s.task} {s.recipe} on {s.backend}: {s.outcome}")
    return int(bool(bad))


def report(
    results: Annotated[list[Path], typer.Argument(help="records, or folders of records, to merge")],
    html: Annotated[Path, typer.Option(help="the page to write")] = Path("report/index.html"),
    readme: Annotated[Path | None, typer.Option(help="a README whose support table is brought up to date")] = None,
) -> None:
    """Merge conformance records into one self-contained page."""
    from rich.console import Console

    from ptd.parameters import replace_file

    from . import record, speed
    from . import report as pages
    from .lra import standings

    files = sorted(file for path in results for file in (path.glob("*.json") if path.is_dir() else [path]))
    if not files:
        raise ValueError(f"results: expected records, got none in {', '.join(map(str, results))}; run ptd conformance")
    records = [record.read(file) for file in files]
    folders = [path / "lra" for path in results if path.is_dir()]  # without one, what is to be reached still shows
    accuracies = [table for folder in folders for table in standings.section(folder)]
    measured = [speed.table(file) for path in results for file in sorted((path / "speed").glob("*.json"))]
    replace_file(html, pages.page(records, lra=accuracies, speed=measured).encode())
    if readme:
        replace_file(readme, pages.with_support_table(readme.read_text(), records).encode())
    console = Console()
    pages.print_table(console, records)
    console.print(f"wrote {html}")
