"""How far a run is, and what is said of one whose numbers stop being finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .training import Run


class Diverged(ValueError):
    """The loss or a parameter is not finite."""


@dataclass
class Progress:
    """How far a run is; all of it is in the checkpoint.

    Attributes:
        epoch, step: whole epochs done, and steps of the next one.
        losses: of the steps of the epoch that is under way.
        curve: one row per epoch: epoch, loss, validation accuracy, seconds of training so far.
        best: the row whose parameters are tested.
        test: test accuracy, once known.
        seconds: in training steps.
        timed_seconds, timed_samples: the same and its samples without the first piece of every session, which compiles.
        sessions: processes that worked on the run.
        devices: on how many it trained, in turn; what is timed is of the last number.
    """

    epoch: int = 0
    step: int = 0
    losses: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    test: float | None = None
    seconds: float = 0.0
    timed_seconds: float = 0.0
    timed_samples: int = 0
    sessions: int = 0
    devices: list[int] = field(default_factory=list)


def diverged(run: Run, step: int) -> Diverged:
    """The error for a loss of the current epoch that is not finite: replay from the checkpoint and look."""
    at = run.progress.epoch * run.steps + step
    run.restore()
    order = np.concatenate([run.order(epoch) for epoch in range(run.progress.epoch, at // run.steps + 1)])
    done = run.progress.epoch * run.steps + run.progress.step
    rows = order[run.progress.step :]
    run.learner.train(run.place("train"), rows[: at - done])
    where = f"step {at + 1} (epoch {at // run.steps + 1})"
    if not (name := _not_finite(run)):
        run.learner.train(run.place("train"), rows[at - done : at - done + 1])
        where, name = f"{where}, from finite parameters", _not_finite(run) or "no parameter, only the loss"
    return Diverged(f"{where}: expected a finite loss, got one that is not, first in {name}; lower its learning rate")


def _not_finite(run: Run) -> str:
    leaves = run.learner.parameters()
    return next((name for name in run.model.shapes() if not np.all(np.isfinite(leaves[name]))), "")
