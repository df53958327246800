"""The command ``ptd analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .catalogue import FIGURES, analyze


def command(
    only: Annotated[list[str] | None, typer.Option(help=f"figures to make, of {', '.join(FIGURES)}; all")] = None,
    n: Annotated[
        list[int] | None, typer.Option(help="orders in place of each figure's own; regression keeps 16")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for PNG, SVG and CSV files")] = Path("analysis"),
    seed: Annotated[int, typer.Option(help="of random perturbations, solver starts and the regression")] = 0,
) -> None:
    """Remake the paper's figures: transfer functions, outputs, conditioning, pseudospectra, regression."""
    from rich.progress import BarColumn, Progress, TimeElapsedColumn

    from ..console import Lines

    console = Lines()
    columns = ("{task.description:28}", BarColumn(), "{task.completed}/{task.total} figures", TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(set(only)) if only else len(FIGURES))

        def report(name: str, doing: str) -> None:
            bar.update(task, description=f"{name}, {doing}", advance=doing == "done")

        files = analyze(out, only or (), n or (), seed, report)
    for name in dict.fromkeys(path.stem.partition("-")[0] for path in files):
        console.say(f"{out / name}.png, .svg, .csv: {FIGURES[name].title}")
