"""Packages that only a command needs, and the pip command that adds them."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, command: str, extra: str) -> Any:
    """A module of one of ptd's extras.

    Args:
        module: its name; the error names the package, which is the name's first part.
        command: who needs it.
        extra: what to install, "ptd[extra]".

    Raises:
        ImportError: it is missing; names the pip command.

    >>> require("json", "demonstration", "cli").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f'{command}: needs {package} ({error}); pip install "ptd[{extra}]"') from error
