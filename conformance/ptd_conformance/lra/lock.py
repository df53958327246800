"""One process at a time where two would spoil each other's files: the second is refused before it touches any."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptd import checks

if sys.platform != "win32":  # which has none: there nothing holds a second process back
    import fcntl


@contextmanager
def alone(path: Path, argument: str, what: str) -> Iterator[None]:
    """Hold the lock file path while a context lasts; the system frees it however the process ends.

    Args:
        path: made if missing, and left behind: removing it could part two processes that wait for it.
        argument: named by the error.
        what: nobody else may be at work on.

    Raises:
        ValueError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            expected = f"{what} that no other process works on"
            raise checks.fail(argument, expected, f"one that holds {path}", "wait for it or end it") from error
        except OSError:
            pass  # some network file systems have no locks, and are no reason not to run
        yield
