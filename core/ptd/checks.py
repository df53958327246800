"""Checks at the public border: one line that names argument, expectation, what came and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def fail(argument: str, expected: str, got: object, remedy: str = "") -> ValueError:
    """The project's one error sentence, as a ValueError to raise.

    >>> str(fail("N", "a positive integer", -3, "pass N >= 1"))
    'N: expected a positive integer, got -3; pass N >= 1'
    """
    return ValueError(f"{argument}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def positive_integer(argument: str, value: Any) -> None:
    """Raise unless value is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise fail(argument, "a positive integer", repr(value), f"pass {argument} >= 1")


def choice(argument: str, value: Any, options: Iterable[str]) -> None:
    """Raise unless value is one of the names in options."""
    if value not in (names := sorted(options)):
        raise fail(argument, "one of " + ", ".join(map(repr, names)), repr(value))


def shape(argument: str, array: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Raise unless array.shape equals expected; meaning names the axes and where their sizes come from."""
    if tuple(array.shape) != expected:
        raise fail(argument, f"shape {expected}, {meaning}", tuple(array.shape))


def finite(argument: str, array: Any) -> None:
    """Raise if a host array has a NaN or infinity, naming the first place."""
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if bad.size:
        raise fail(
            argument,
            "finite values",
            f"{np.asarray(array)[tuple(bad[0])]} at index {tuple(int(i) for i in bad[0])}",
            "the parameters diverged or the file is damaged: go back to an earlier checkpoint",
        )
