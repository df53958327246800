"""What commands print: text as it is, whole where it goes to a file, and bars."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

#: Columns of a table in a file, where nobody says how many there are.
WIDE = 250


class Lines(Console):
    """A console for lines that quote names, paths and errors of others: brackets in them are no markup."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = WIDE

    def say(self, text: Any) -> None:
        """Print a line, however long: what reads it from a pipe looks for whole ones."""
        self.print(text, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Say that the reader is gone, where rich would end the process without a word."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise BrokenPipeError("output: expected a reader, got a closed pipe; write it to a file") from None


def bar(console: Console, *columns: Any) -> Progress:
    """A bar after its task's description, which vanishes at its end and is not drawn to a file."""
    description, drawn = TextColumn("{task.description}", markup=False), console.is_terminal
    usual = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(description, *(columns or usual), console=console, transient=True, disable=not drawn)
