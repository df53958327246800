"""Whole data sets as learners hold them, and training on them step by step where a framework has nothing better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arrays import Array
from .model import SequenceModel


class Placed(NamedTuple):
    """A data set, or a batch of one, where a learner reads it: arrays of the host or of a framework."""

    inputs: Array
    targets: Array
    lengths: Array | None

    def rows(self, index: Array) -> Placed:
        """The batch of the rows in index."""
        return Placed(*(None if part is None else part[index] for part in self))


class WholeSets:
    """place, train and evaluate of ptd.contract.Learner from step and outputs, one batch at a time from the host.

    Attributes:
        model: what is trained, whose tokens, classes and lengths place looks for.
    """

    model: SequenceModel

    def place(self, inputs: NDArray, targets: NDArray, lengths: NDArray | None = None) -> Placed:
        """See ptd.contract.Learner."""
        return Placed(*as_set(self.model, inputs, targets, lengths))

    def train(self: Any, placed: Placed, order: NDArray[np.integer]) -> NDArray[np.float32]:
        """See ptd.contract.Learner."""
        # floats last: a framework may still be computing while the next step is queued
        losses = [self.step(*placed.rows(index)) for index in checked_rows("order", order, placed)]
        return np.array([float(loss) for loss in losses], np.float32)

    def evaluate(self: Any, placed: Placed, indices: NDArray[np.integer], batch: int) -> NDArray[np.float32]:
        """See ptd.contract.Learner."""
        parts = []
        for index in batches(checked_rows("indices", indices, placed), batch):
            inputs, _, lengths = placed.rows(index)
            parts.append(np.asarray(self.outputs(inputs, lengths), np.float32))
        return np.concatenate(parts)[: len(indices)]


def as_set(
    model: SequenceModel, inputs: NDArray, targets: NDArray, lengths: NDArray | None
) -> tuple[NDArray, NDArray, NDArray[np.int32] | None]:
    """inputs, targets and lengths as place takes them, checked: class numbers and lengths as int32.

    Raises:
        ValueError: they do not have one row each per sample, or values are none of the model's.
    """
    check_rows(inputs, targets, lengths)
    targets, lengths = np.asarray(targets), None if lengths is None else np.asarray(lengths)
    model.check_samples(inputs, targets, lengths)
    if targets.dtype.kind in "iu":
        targets = targets.astype(np.int32)
    return inputs, targets, None if lengths is None else lengths.astype(np.int32)


def check_rows(inputs: Array, targets: Array, lengths: Array | None) -> None:
    """Raise ValueError unless inputs have samples along their first axis, and targets and lengths one row for each."""
    rows = np.shape(inputs)[:1]
    if not rows:
        raise checks.fail("inputs", "an array of samples (batch, ...)", "a single number")
    for name, value in (("targets", targets), ("lengths", lengths)):
        if value is not None and np.shape(value)[:1] != rows:
            got = np.shape(value)[:1]
            raise checks.fail(name, f"{rows[0]} rows, one per input", got[0] if got else "a single number")


def checked_rows(argument: str, rows: Any, placed: Placed) -> NDArray[np.int32]:
    """Row numbers on the host; ValueError unless each is one of placed: a device may read past the end."""
    host = np.asarray(rows)
    checks.numbers_below(argument, host, np.shape(placed.targets)[0], "row numbers", "the set")
    return host.astype(np.int32)


def check_targets(shape: Sequence[int], are_classes: bool, outputs: Sequence[int]) -> None:
    """Raise ValueError unless targets of a shape fit a model's outputs: to broadcast them would be another loss.

    >>> check_targets((8,), True, (8, 3))
    """
    kind, expected = ("class numbers", outputs[:-1]) if are_classes else ("real values", outputs)
    if tuple(shape) != tuple(expected):
        need = f"{kind} of shape {tuple(expected)} for outputs of shape {tuple(outputs)}"
        raise checks.fail("targets", need, tuple(shape), "reshape them")


def batches(indices: NDArray[np.integer], batch: int) -> list[NDArray[np.integer]]:
    """indices (n,) in pieces of exactly batch, the last one filled up with its own first index: one compiled shape.

    >>> [piece.tolist() for piece in batches(np.arange(3), 2)]
    [[0, 1], [2, 2]]
    """
    checks.positive_integer("batch", batch)
    if not len(indices):
        raise checks.fail("indices", "at least one row", "none")
    missing = -len(indices) % batch
    last = len(indices) // batch * batch if missing else 0
    filled = np.concatenate([indices, np.full(missing, indices[last])])
    return list(filled.reshape(-1, batch))
