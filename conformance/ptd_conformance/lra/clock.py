"""When a run has to stop: at the end of its time budget, or when it is asked to."""

from __future__ import annotations

import re
import signal
import time
from types import FrameType, TracebackType

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """A duration such as "9m", "90s" or "1.5h".

    Raises:
        ValueError: it is none, or has no unit.

    >>> seconds("9m"), seconds("90s")
    (540.0, 90.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"budget: expected a duration with its unit, as 9m, 90s or 1.5h, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


class Clock:
    """Tells whether there is time for something; as a context, SIGTERM and SIGINT end the time at once."""

    def __init__(self, budget: float | None = None, reserve: float = 8.0):
        """Let budget seconds from now be the limit, of which reserve are kept for the end of the process."""
        self.start = time.monotonic()
        self._end = None if budget is None else self.start + budget - min(reserve, budget / 4)
        self.signal = ""

    def has(self, needed: float) -> bool:
        """Whether something that takes needed seconds may begin."""
        return not self.signal and (self._end is None or time.monotonic() + needed < self._end)

    @property
    def why(self) -> str:
        """Why there is no more time, in words."""
        return self.signal or "the time budget is used up"

    def __enter__(self) -> Clock:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None is a handler that Python did not set

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = f"{signal.Signals(number).name} came"
