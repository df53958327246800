"""The command ``ptd bench``, and the records of its runs, which the report shows.

What is measured is in the module `speed` beside each backend; see ptd.speed.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import importlib.util
import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from ptd.speed import Figure

Record = dict[str, Any]

COLUMNS = ["what", "ms", "compared with", "times faster", "asked for", "of copy bandwidth", "GiB", ""]


def bench(
    backend: Annotated[str, typer.Option(help="a registered backend, or module:object")],
    only: Annotated[list[str] | None, typer.Option(help="groups of figures to measure; all by default")] = None,
    json: Annotated[
        Path | None, typer.Option(help="write the record of the run to this file, figure by figure")
    ] = None,
    note: Annotated[str, typer.Option(help="what was special about the run, for the report")] = "",
) -> None:
    """Measure a backend's speed: medians of many runs, compared within this run unless a figure says otherwise."""
    import ptd
    from ptd import checks
    from ptd.console import Lines
    from ptd.parameters import check_replaceable

    if json:
        check_replaceable("json", json)
    found, console = ptd.backend(backend), Lines()
    groups = _module(found).FIGURES
    for name in only or ():
        checks.choice("only", name, groups)
    record: Record = {
        "backend": found.name,
        "device": found.device(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": found.versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "note": note,
        "figures": [],
    }
    for name in only or groups:
        for figure in groups[name](found):
            record["figures"].append(dataclasses.asdict(figure))
            console.say(" | ".join(cell for cell in cells(figure) if cell))
            if json:
                write(json, record)


def _module(backend: Any) -> Any:
    name = type(backend).__module__.partition(".")[0] + ".speed"
    if importlib.util.find_spec(name) is None or name == "ptd.speed":
        raise ValueError(f"backend: expected one with measurements, got {backend.name} without a module {name}")
    return importlib.import_module(name)


def cells(figure: Figure) -> list[str]:
    """A figure as a row of the report's table."""
    return [
        figure.label,
        f"{figure.seconds * 1e3:.3g}",
        figure.source,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        ""
        if figure.target is None
        else f"{figure.target:g}" + ("" if (figure.ratio or 0) >= figure.target else " (missed)"),
        "" if figure.fraction is None else f"{figure.fraction:.0%}",
        "" if figure.gibibytes is None else f"{figure.gibibytes:.2f}",
        figure.note,
    ]


def write(path: Path, record: Record) -> None:
    """Write a record, atomically."""
    from ptd.parameters import replace_file

    replace_file(path, (json.dumps(record, indent=1) + "\n").encode())


def table(path: Path) -> dict[str, Any]:
    """A record as a table of the report.

    Raises:
        ValueError: the file is not a record of ``ptd bench``.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [cells(Figure(**figure)) for figure in record["figures"]]
        versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
        title = f"{record['backend']} on {record['device']}"
        note = f"{record['date']}, {versions}. {record['note']}".strip()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path: expected a record of ptd bench, got {path.name}: {error}; run it again") from error
    return {"title": title, "note": note, "columns": COLUMNS, "rows": rows}
