"""The tasks: what a model sees of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ptd
from ptd import checks

from . import making
from .making import Order

__all__ = ["TASKS", "Order", "Task", "task"]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        title: for people.
        length: of its longest sequence, as the model sees it.
        classes: number of classes.
        input: how stored integers become samples, or None for tokens.
        make: makes its set.
        pair: whether a sample is two sequences.
    """

    title: str
    length: int
    classes: int
    input: ptd.Input | None
    make: Callable[[Order], Path]
    pair: bool = False


def _eight_bit(mean: tuple[float, ...], deviation: tuple[float, ...]) -> ptd.Input:
    """Pixels in 0 ... 255 to (x/255 - mean)/deviation per channel."""
    scale = tuple(1 / (255 * d) for d in deviation)
    return ptd.Input(scale, tuple(-m / d for m, d in zip(mean, deviation, strict=True)))


_GREY, _SIGNED = _eight_bit((122.6 / 255,), (61.0 / 255,)), _eight_bit((0.5,), (0.5,))
_COLOUR = _eight_bit((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_DIGIT = _eight_bit((0.1307,), (0.3081,))

TASKS: dict[str, Task] = {
    "listops": Task("ListOps", 2048, 10, None, making.listops),
    "text": Task("Text (IMDB)", 4096, 2, None, making.text),
    "retrieval": Task("Retrieval (AAN)", 4000, 2, None, making.retrieval, pair=True),
    "same-film": Task("Same film (a stand-in for Retrieval, not AAN)", 4000, 2, None, making.same_film, pair=True),
    "image": Task("Image (grey CIFAR-10)", 1024, 10, _GREY, lambda order: making.images(order, "image")),
    "pathfinder": Task("Pathfinder", 1024, 2, _SIGNED, lambda order: making.pathfinder(order, "pathfinder")),
    "pathx": Task("Path-X", 16384, 2, _SIGNED, lambda order: making.pathfinder(order, "pathx")),
    "scifar": Task("Colour CIFAR-10", 1024, 10, _COLOUR, lambda order: making.images(order, "scifar")),
    "mnist": Task("MNIST, pixel by pixel", 784, 10, _DIGIT, lambda order: making.images(order, "mnist")),
    "pmnist": Task("MNIST, permuted", 784, 10, _DIGIT, lambda order: making.images(order, "pmnist")),
}


def task(name: str) -> Task:
    """A task by name.

    Raises:
        ValueError: there is none of that name.
    """
    checks.choice("task", name, TASKS)
    return TASKS[name]
