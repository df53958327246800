"""The command line: ``ptd COMMAND``. Commands are found through the entry-point group "ptd.commands"."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated

GROUP = "ptd.commands"


def main() -> None:
    """Run the command line; errors of use and of input are one line on standard error, exit status 1."""
    try:
        import typer
    except ModuleNotFoundError:
        sys.exit('ptd: the command line needs typer and rich; to add them: pip install "ptd[cli]"')
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        app.command(point.name)(point.load())
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"ptd: {error}")


def list_backends() -> None:
    """List the backends that are installed, and what would add the others."""
    from rich.console import Console
    from rich.table import Table

    from .registry import backend, backends

    table = Table("backend", "loads", "device", "versions, or why not")
    for name, entry in backends().items():
        if entry.loadable:
            found = backend(name)
            versions = ", ".join(f"{package} {version}" for package, version in found.versions().items())
            table.add_row(name, "yes", found.device(), versions)
        else:
            table.add_row(name, "no", "", entry.reason)
    Console().print(table)


def train_quickstart(
    backend: Annotated[str, "the backend to train on"] = "jax",
    out: Annotated[str, "folder for the figure and checkpoints"] = "quickstart",
    seed: Annotated[int, "of the split, the initial parameters and the batches"] = 0,
) -> None:
    """Train S4D and S4-PTD on real digits, pixel by pixel, and see which survives Fourier-mode noise."""
    from .quickstart import quickstart

    quickstart(backend, out, seed)
