"""The command ``ptd data``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ptd import checks, extras


def data(
    action: Annotated[str, typer.Argument(help="list, fetch, make or verify")],
    tasks: Annotated[
        list[str] | None, typer.Argument(help="tasks; all made sets by default, for list and verify")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="the data folder; PTD_DATA by default")] = None,
    source: Annotated[
        Path | None, typer.Option(help="where archives are read from; the data folder by default")
    ] = None,
    seed: Annotated[int, typer.Option(help="of generated samples and random splits")] = 0,
    samples: Annotated[int | None, typer.Option(help="make a set of another size, for trials")] = None,
    workers: Annotated[int, typer.Option(help="threads of a generator")] = os.cpu_count() or 1,
    official: Annotated[bool, typer.Option(help="read a generated task's released files instead")] = False,
) -> None:
    """List, fetch, make or verify the data sets of the Long Range Arena."""
    from ptd.console import Lines

    from . import store
    from .tasks import TASKS

    checks.choice("action", action, ("list", "fetch", "make", "verify"))
    for name in tasks or ():
        checks.choice("tasks", name, TASKS)
    if action in ("fetch", "make") and not tasks:
        raise checks.fail("tasks", "at least one", "none", f"name some of {', '.join(TASKS)}")
    console = Lines()
    if action == "list":
        return _list(console, root or os.environ.get(store.ENVIRONMENT), tasks or list(TASKS))
    base = store.root(root)
    if action == "verify":
        _verify(console, base, tasks)
    options: dict[str, Any] = {"seed": seed, "samples": samples, "workers": workers, "official": official}
    for name in tasks or () if action in ("fetch", "make") else ():
        with _progress(console, name) as report:
            if action == "fetch":
                _fetch(console, base, name, report)
            else:
                _make(console, base, name, options | {"source": source or base, "report": report})


def _fetch(console: Any, base: Path, name: str, report: Any) -> None:
    from .fetch import fetch

    for path in fetch(base, name, lambda _, done, total: report(done, total)):
        console.say(f"{path}: there, its checksum matches")


def _make(console: Any, base: Path, name: str, options: dict[str, Any]) -> None:
    from . import lock
    from .tasks import TASKS, Order

    for module in ("numba", "PIL"):
        extras.require(module, "ptd data make", "lra")
    with lock.alone(base / "made" / f".{name}.lock", "tasks", f"a set of {name}"):
        console.say(_line(TASKS[name].make(Order(base, **options, say=console.say))))


def _list(console: Any, base: str | Path | None, names: list[str]) -> None:
    from rich.table import Column, Table

    from . import store
    from .fetch import ELSEWHERE
    from .tasks import TASKS

    task, made_set = (Column(name, no_wrap=True, overflow="fold") for name in ("task", "made set"))  # never cut
    table = Table(task, "what", "length", "classes", made_set, "files to fetch")
    for name in names:
        what, found = TASKS[name], store.made(Path(base), name) if base else []
        made = "\n".join(folder.name for folder in found) or ("none" if base else "")
        table.add_row(name, what.title, str(what.length), str(what.classes), made, "no" if name in ELSEWHERE else "yes")
    console.print(table)
    if not base:
        console.say(f"made sets are listed with --root FOLDER or {store.ENVIRONMENT}")


def _verify(console: Any, base: Path, names: list[str] | None) -> None:
    from . import store

    asked: Sequence[str | None] = names or [None]
    folders = [folder for name in asked for folder in store.made(base, name)]
    if not folders:
        raise checks.fail("tasks", f"made sets under {base / 'made'}", "none", "ptd data make TASK")
    damaged = 0
    for folder in folders:
        try:
            store.check(folder)
        except ValueError as error:
            damaged += 1
            console.say(f"{error}")
        else:
            console.say(f"{_line(folder)}, every checksum matches")
    if damaged:
        raise checks.fail("tasks", "made sets as they were written", f"{damaged} damaged of {len(folders)}")


def _line(folder: Path) -> str:
    import json

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    size = sum(file["bytes"] for file in manifest["files"].values()) / 2**20
    splits = ", ".join(f"{count} {name}" for name, count in manifest["splits"].items())
    return f"{folder.name}: {splits}; {size:.1f} MiB in {len(manifest['files'])} files"


@contextmanager
def _progress(console: Any, name: str) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    from ptd.console import bar

    with bar(console, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total or None)
