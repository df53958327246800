"""The command line: ``ptd COMMAND``. Commands are found through the entry-point group "ptd.commands"."""

from __future__ import annotations

import io
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

from .contract import Unsupported
from .perturbation import NotConverged

GROUP = "ptd.commands"


def main() -> None:
    """Run the command line; errors of use and of input are one line on standard error, exit status 1."""
    try:
        import typer
    except ModuleNotFoundError:
        if sys.argv[1:] == ["backends"]:
            return list_backends()
        remedy = 'to add them: pip install "ptd[cli]"; ptd backends needs neither'
        sys.exit(f"ptd: the command line needs typer and rich; {remedy}")
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    def say_version(asked: bool) -> None:
        if asked:
            print(f"ptd {version('ptd')}")
            raise typer.Exit

    option = typer.Option(False, "--version", is_eager=True, callback=say_version, help="Say ptd's version and exit.")

    @app.callback(help=__doc__)
    def options(version: bool = option) -> None: ...

    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            app.command(point.name)(point.load())
        except Exception as error:  # a stranger's: the other commands still serve
            print(f"ptd: without the command {point.name!r}, {point.value}: {error}", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sign that the locale lacks ends no run
    try:
        app()
    except (ValueError, OSError, ImportError, Unsupported, NotConverged) as error:
        sys.exit(f"ptd: {error}")


def list_backends() -> None:
    """List the backends that are installed, and what would add the others."""
    from .registry import backend, backends

    rows = [("backend", "loads", "device", "versions, or why not")]
    for name, entry in backends().items():
        if entry.loadable:
            found = backend(name)
            versions = ", ".join(f"{package} {version}" for package, version in found.versions().items())
            rows.append((name, "yes", found.device(), versions))
        else:
            rows.append((name, "no", "", entry.reason))
    try:
        from rich.table import Table

        from .console import Lines
    except ModuleNotFoundError:  # they come with an extra that none of the backends needs
        for row in rows:
            print("  ".join(filter(None, row)))
        return
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    Lines().print(table)


def train_quickstart(
    backend: Annotated[str, "the backend to train on"] = "jax",
    out: Annotated[str, "folder for the figure and checkpoints"] = "quickstart",
    seed: Annotated[int, "of the split, the initial parameters and the batches"] = 0,
) -> None:
    """Train S4D and S4-PTD on real digits, pixel by pixel, and see which survives Fourier-mode noise."""
    from .quickstart import quickstart

    quickstart(backend, out, seed)
