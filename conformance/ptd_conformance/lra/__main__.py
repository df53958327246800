"""The commands of the Long Range Arena from a tree that is on the path but not installed.

    python -m ptd_conformance.lra train listops --recipe s5-ptd --backend ptd_torch:backend

Without an installation backends have no names: pass module:object.
"""

from __future__ import annotations

import sys

import typer

from .data_command import data
from .retest_command import retest
from .robustness_command import robustness
from .train_command import train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for command in (data, train, retest, robustness):
    app.command()(command)

if __name__ == "__main__":
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"ptd: {error}")
