"""What a clause can come to, and what is written down about it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Outcome(enum.Enum):
    """The one list of outcomes; a name outside it is refused wherever results are read."""

    PASS = "pass"
    FAIL = "fail"
    EXPECTED_FAIL = "expected-fail"
    UNSUPPORTED = "unsupported"
    NOT_RUN = "not-run"


@dataclass(frozen=True)
class Measurement:
    """One comparison: the largest error as a multiple of the allowed one."""

    label: str
    ratio: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the allowed one; a NaN is not."""
        return self.ratio <= 1.0


@dataclass(frozen=True)
class Result:
    """The outcome of one clause on one subject in one dtype."""

    clause: str
    subject: str
    dtype: str
    outcome: Outcome
    worst: Measurement | None = None
    reason: str = ""


@dataclass(frozen=True)
class Done:
    """A clause that has run: its results in the order of its trials, and the sum of their times in seconds."""

    clause: str
    results: tuple[Result, ...]
    seconds: float | None


def compare(label: str, actual: NDArray | float, expected: NDArray | float, allowed: NDArray | float) -> Measurement:
    """The largest |actual - expected| / allowed; infinite for NaN, wrong shapes, or any error where none is allowed."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return Measurement(f"{label}: shape {actual.shape} where {expected.shape} is due", np.inf)
    error, allowed = np.abs(actual - expected), np.broadcast_to(allowed, actual.shape)
    if not error.size:
        return Measurement(label, 0.0)
    ratio = np.where(error == 0, 0.0, error / np.where(allowed > 0, allowed, np.finfo(np.float64).tiny))
    return Measurement(label, float(np.where(np.isnan(ratio), np.inf, ratio).max()))


def worst(measurements: Iterable[Measurement]) -> Measurement:
    """The measurement with the largest ratio."""
    return max(measurements, key=lambda m: m.ratio)


def holds(label: str, condition: bool) -> Measurement:
    """A comparison that is true or false."""
    return Measurement(label, 0.0 if condition else np.inf)
