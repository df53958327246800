"""One training run, from a recipe to a test accuracy: the loop, its checkpoints, and its record.

A run is a function of recipe, data, seed and backend. Batches of an epoch are drawn from (seed, epoch), dropout from
(seed, step); everything else is in the checkpoint. A run that was stopped and resumed is the uninterrupted one, up to
rounding where it goes on on another number of devices.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptd
from ptd import checks
from ptd.contract import Backend

from . import checkpoint
from .clock import Clock
from .progress import Diverged, Progress, diverged
from .recipe import Recipe
from .store import DataSet, Split

#: Seconds of work between two looks at the clock, and between two checkpoints.
PIECE_SECONDS, SAVE_SECONDS = 2.0, 120.0

#: The file of a complete run that ptd.load reads, in its folder.
MODEL = "model.safetensors"

Report = Callable[["Run", float], None]

__all__ = ["Diverged", "Progress", "Run", "saved"]


class Run:
    """A training run on a data set, fresh or as its folder's checkpoint left it."""

    def __init__(
        self,
        recipe: Recipe,
        data: DataSet,
        backend: Backend,
        seed: int,
        folder: Path,
        *,
        epochs: int | None = None,
        activations: str | None = None,
        devices: int = 1,
        report: Report = lambda run, loss: None,
    ):
        self.recipe, self.data, self.seed, self.folder = recipe, data, seed, folder
        self.backend, self.report = backend, report
        self.epochs, self.activations, self.devices = recipe.epochs if epochs is None else epochs, activations, devices
        self.steps = len(data.splits["train"].targets) // recipe.batch
        if not self.steps:
            raise ValueError(
                f"batch: expected at most {len(data.splits['train'].targets)} training samples, got {recipe.batch}"
            )
        model = recipe.description(data.d_input)
        self.model = model
        rule = recipe.rule(self.steps, self.epochs)
        options: dict[str, Any] = {"activations": activations, "devices": devices}
        self.learner = backend.learner(model, recipe.leaves(model, seed), rule, seed, **options)
        self.progress = Progress()
        self._best: dict[str, NDArray] = {}
        self._placed: dict[str, Any] = {}
        self._piece, self._evaluation_seconds = 1, {"validation": 0.0, "test": 0.0}
        self._saved, self._save_seconds, self._compiled = time.monotonic(), 0.0, False

    @classmethod
    def selected(cls, folder: Path, data: DataSet, backend: str | None = None) -> Run:
        """A complete run read back from its folder, with the parameters that validation selected in its learner.

        backend names the one it was trained on where that is not registered: the learner's state is its own.

        Raises:
            ValueError: the folder has no complete run of this data set.
        """
        found = saved(folder)
        if found is None or found["progress"].get("test") is None:
            raise ValueError(f"runs: expected the folder of a complete run, got {folder}; ptd train --resume")
        own = found["identity"]
        run = cls(
            Recipe(**own["recipe"]),
            data,
            ptd.backend(backend or own["backend"]),
            own["seed"],
            folder,
            epochs=own["epochs"],
            activations=own.get("activations"),  # missing from runs before it could be chosen
        )
        run.restore()
        run._take_best()
        return run

    # --- the loop ----------------------------------------------------------------------------------------------

    def go(self, clock: Clock) -> bool:
        """Train, select, test; True if the run is complete, False if the clock stopped it. Either way it is saved.

        Raises:
            Diverged: a loss is not finite; names the step and the parameter. The last checkpoint stays.
        """
        self.progress.sessions += 1
        with self.backend.fast_products():
            self._warm_up()
        self.save()
        with self.backend.fast_products():
            complete = self._train(clock) and self._test(clock)
        if complete:
            self.write_model()  # before the checkpoint says so: one killed between is tested and written again
        self.save()
        return complete

    def _train(self, clock: Clock) -> bool:
        while self.progress.epoch < self.epochs:
            if not self._epoch(clock) or not clock.has(self._end_seconds("validation")):
                return False
            self._validate()
        return True

    def _epoch(self, clock: Clock) -> bool:
        """The steps that are left of an epoch; False if the clock stopped it."""
        p, order = self.progress, self.order(self.progress.epoch)
        while p.step < self.steps:
            count = min(self._piece, self.steps - p.step)
            if not clock.has(self._save_seconds + count * self._step_seconds()):
                return False
            began = time.monotonic()
            losses = self.learner.train(self.place("train"), order[p.step : p.step + count])
            took = time.monotonic() - began
            if not np.all(np.isfinite(losses)):
                raise diverged(self, p.step + int(np.argmax(~np.isfinite(losses))))
            p.losses, p.step = np.concatenate([p.losses, losses]), p.step + count
            self._timed(took, count)
            self._say(float(losses.mean()))
            if time.monotonic() - self._saved > SAVE_SECONDS:
                self.save()
        return True

    def _validate(self) -> None:
        p = self.progress
        accuracy = self.accuracy("validation")
        row = {"epoch": p.epoch + 1, "loss": float(p.losses.mean(dtype=np.float64)), "validation": accuracy}
        p.curve.append(row | {"seconds": round(p.seconds, 1)})
        if p.best is None or accuracy >= p.best["validation"]:
            p.best, self._best = p.curve[-1], self.learner.parameters()
        p.epoch, p.step, p.losses = p.epoch + 1, 0, np.zeros(0, np.float32)
        self._say(row["loss"])

    def _say(self, loss: float) -> None:
        """Report; a run whose report fails, as where its reader is gone, is saved, since it is between two steps."""
        try:
            self.report(self, loss)
        except BaseException:
            self.save()
            raise

    def _test(self, clock: Clock) -> bool:
        """Test the selected parameters, once."""
        if self.progress.test is None:
            if not clock.has(self._end_seconds("test")):
                return False
            last = self.learner.snapshot()
            self._take_best()
            self.progress.test = self.accuracy("test")
            self.learner.restore(last)
        return True

    def write_model(self) -> None:
        """Write what was tested to the folder's MODEL: the description and the leaves that validation selected."""
        ptd.save(self.folder / MODEL, self.model, self._best)

    def _take_best(self) -> None:
        best = {f"leaves.{name}": value for name, value in self._best.items()}
        self.learner.restore(self.learner.snapshot() | best)

    # --- parts -------------------------------------------------------------------------------------------------

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows of every batch of an epoch, (steps, batch): each sample at most once, the last odd ones left out."""
        count = len(self.data.splits["train"].targets)
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(count)
        return shuffled[: self.steps * self.recipe.batch].reshape(self.steps, self.recipe.batch)

    def accuracy(self, split: str, rows: NDArray | None = None) -> float:
        """The share of a split, or of some of its rows, that the current parameters classify correctly."""
        began = time.monotonic()
        targets = np.asarray(self.data.splits[split].targets)
        rows = np.arange(len(targets)) if rows is None else rows
        found = self._share(self.place(split), targets, rows, split)
        self._evaluation_seconds[split] = (time.monotonic() - began) / len(rows) * len(targets)
        return found

    def accuracy_on(self, part: Split) -> float:
        """The share of samples that are not the run's own which the current parameters classify correctly."""
        placed, targets = self.learner.place(part.inputs, part.targets, part.lengths), np.asarray(part.targets)
        with self.backend.fast_products():
            return self._share(placed, targets, np.arange(len(targets)), "further samples")

    def accuracy_on_all(self, data: DataSet) -> tuple[float, int]:
        """accuracy_on of all samples of another set, whichever split they are in, and how many they are."""
        counts = {name: len(part.targets) for name, part in data.splits.items()}
        right = sum(round(counts[name] * self.accuracy_on(part)) for name, part in data.splits.items())
        samples = sum(counts.values())
        return right / samples, samples

    def _share(self, placed: Any, targets: NDArray, rows: NDArray, what: str) -> float:
        outputs = self.learner.evaluate(placed, rows, self.recipe.batch)
        if not np.all(np.isfinite(outputs)):
            raise Diverged(f"epoch {self.progress.epoch + 1}: expected finite outputs on {what}, got nan; lower lr")
        return float((outputs.argmax(-1) == targets[rows]).mean())

    @property
    def tokens_per_second(self) -> float | None:
        """Time steps of input per second of training, compilation aside."""
        p = self.progress
        if not p.timed_seconds:
            return None
        inputs = self.data.splits["train"].inputs
        per_sample = inputs.shape[1] * (inputs.shape[2] if self.model.pair else 1)
        return p.timed_samples * per_sample / p.timed_seconds

    def _warm_up(self) -> None:
        """Compile the evaluation and learn how long it takes, before the clock has to know."""
        for split in ("validation", "test") if self.progress.epoch == self.epochs else ("validation",):
            rows = np.arange(min(self.recipe.batch, len(self.data.splits[split].targets)))
            for _ in range(2):
                self.accuracy(split, rows)
        self._evaluation_seconds["test"] = self._evaluation_seconds["test"] or self._per_sample("validation") * len(
            self.data.splits["test"].targets
        )

    def _per_sample(self, split: str) -> float:
        return self._evaluation_seconds[split] / len(self.data.splits[split].targets)

    def _end_seconds(self, split: str) -> float:
        return self._save_seconds + 1.5 * self._evaluation_seconds[split]

    def _step_seconds(self) -> float:
        p = self.progress
        return 1.5 * p.timed_seconds * self.recipe.batch / p.timed_samples if p.timed_samples else 0.0

    def _timed(self, took: float, count: int) -> None:
        p = self.progress
        p.seconds += took
        if p.devices[-1:] != [self.devices]:
            # What others took says nothing of these.
            p.devices, p.timed_seconds, p.timed_samples = [*p.devices, self.devices], 0.0, 0
        if self._compiled:
            p.timed_seconds += took
            p.timed_samples += count * self.recipe.batch
            self._piece = int(np.clip(PIECE_SECONDS / max(took / count, 1e-9), 1, 2 * self._piece))
        self._compiled = True

    def place(self, split: str) -> Any:
        """A split where the learner reads it."""
        if split not in self._placed:
            part: Split = self.data.splits[split]
            self._placed[split] = self.learner.place(part.inputs, part.targets, part.lengths)
        return self._placed[split]

    # --- checkpoints -------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be gone on with."""
        return {
            "recipe": self.recipe.as_json(),
            "data": self.data.key,
            "seed": self.seed,
            "backend": self.backend.name,
            "epochs": self.epochs,
            "activations": self.activations,
        }

    def save(self) -> None:
        """Replace the checkpoint by the state now."""
        began = time.monotonic()
        arrays = dict(self.learner.snapshot()) | {"losses": self.progress.losses}
        arrays |= {f"best.{name}": value for name, value in self._best.items()}
        values = {name: value for name, value in vars(self.progress).items() if name != "losses"}
        checkpoint.save(self.folder, arrays, {"identity": self.identity(), "progress": values})
        self._saved = time.monotonic()
        self._save_seconds = self._saved - began

    def restore(self) -> bool:
        """Take over the folder's checkpoint; False if there is none.

        Raises:
            ValueError: it is damaged, or of another run; names what differs.
        """
        if saved(self.folder) is None or (found := checkpoint.load(self.folder)) is None:
            return False
        arrays, values = found
        # as JSON has it, where tuples are lists
        own = checkpoint.plain(self.identity())
        for name, value in own.items():
            if values["identity"].get(name) != value:
                raise ValueError(
                    f"{self.folder.name}: expected a checkpoint of the same {name}, got another's; use another --out"
                )
        # Checkpoints from before a run could have several devices do not say how many.
        self.progress = Progress(losses=arrays.pop("losses"), **{"devices": [1]} | values["progress"])
        self._best = {name.removeprefix("best."): arrays.pop(name) for name in list(arrays) if name.startswith("best.")}
        self.learner.restore(arrays)
        return True


def saved(folder: Path) -> dict[str, Any] | None:
    """What the folder's checkpoint says of its run: identity and progress; None if it has none.

    Raises:
        ValueError: it is damaged, or says less or more than a run does.
    """
    values = checkpoint.values_of(folder)
    if values is not None and (odd := _odd(values)):
        remedy = "it is damaged or of another version, use a copy or another --out"
        raise checks.fail(f"{folder.name}/{checkpoint.MANIFEST}", "the values of a run", odd, remedy)
    return values


def _odd(values: Any) -> str:
    """What a checkpoint's values lack, or have beyond what is known; "" if nothing."""
    try:
        own, known = values["identity"], {field.name for field in dataclasses.fields(Progress)}
        lacks = {"recipe", "data", "seed", "backend", "epochs"} - own.keys()
        lacks |= {field.name for field in dataclasses.fields(Recipe)} - own["recipe"].keys()
        beyond = values["progress"].keys() - known
    except (KeyError, TypeError, AttributeError) as error:
        return repr(error)
    return ", ".join([*(f"none named {name}" for name in sorted(lacks)), *(f"also {name}" for name in sorted(beyond))])
