"""The command ``ptd robustness``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def robustness(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="folders of complete scifar runs of ptd train; without any, the figure of --out is drawn"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the results and the figure")] = Path("robustness"),
    backend: Annotated[
        str | None,
        typer.Option(help="the backend the runs were trained on, as module:object where it is not registered"),
    ] = None,
    samples: Annotated[int, typer.Option(help="test samples, the first ones")] = 10_000,
    root: Annotated[Path | None, typer.Option(help="the data folder; PTD_DATA by default")] = None,
) -> None:
    """Test trained classifiers under noise at S4D's last spike, by amplitude and by frequency."""
    from rich.table import Table

    from ptd.console import Lines, bar

    from . import robustness as noise
    from . import store
    from .training import Run

    console, data = Lines(), None
    for folder in runs or ():
        data = data or store.load(store.root(root), "scifar")
        run = Run.selected(folder, data, backend)
        with bar(console) as shown:
            task = shown.add_task(folder.name)

            def report(done: int, total: int, shown: Any = shown, task: Any = task) -> None:
                shown.update(task, completed=done, total=total)

            noise.write(out, noise.measure(run, samples=samples, report=report))
    noise.draw(out)
    for part in noise.table(out):
        table = Table(*map(str, part["columns"]), title=part["title"])
        for row in part["rows"]:
            table.add_row(*map(str, row))
        console.print(table)
    console.say(f"wrote {out}")
