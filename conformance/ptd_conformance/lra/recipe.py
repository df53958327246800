"""Recipes: how one model is trained on one task, read from TOML. They are data; this is all that interprets them.

A task's file has one table per recipe with the tables layer, initial, model, optimizer and training. `like` names the
recipe of the same file whose values hold where a table says nothing else; `of` is the published model it repeats.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptd
from ptd import checks
from ptd.layers import LAYERS

from .tasks import TASKS, task

TABLES = ("layer", "initial", "model", "optimizer", "training")
TRAINING = {"batch", "epochs", "warmup_epochs", "warmup_steps"}


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        task, name: where it is found.
        of: the published model it repeats, as targets are listed; "" if there is none.
        note: what it does differently and why.
        layer: kind and fields of the layer.
        initial: options of ptd.initialize.
        model: fields of ptd.SequenceModel.
        optimizer: fields of ptd.Optimizer.
        training: batch, epochs, and warmup_epochs or warmup_steps.
    """

    task: str
    name: str
    of: str
    note: str
    layer: Mapping[str, Any]
    initial: Mapping[str, Any]
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.training["batch"]

    @property
    def epochs(self) -> int:
        """Passes over the training samples."""
        return self.training["epochs"]

    def description(self, d_input: int) -> ptd.SequenceModel:
        """The model for a set of d_input features or tokens."""
        what = task(self.task)
        kind, fields = self.layer["kind"], {n: v for n, v in self.layer.items() if n != "kind"}
        checks.choice("layer.kind", kind, LAYERS)
        ends = {"input": what.input, "encoder": "embedding" if what.input is None else "linear", "pair": what.pair}
        return ptd.SequenceModel(
            LAYERS[kind](**fields), d_input=d_input, d_output=what.classes, **{**ends, **self.model}
        )

    def rule(self, steps_per_epoch: int, epochs: int) -> ptd.Optimizer:
        """The optimiser of a run of so many steps."""
        total = steps_per_epoch * epochs
        warm_up = self.training.get("warmup_steps", self.training.get("warmup_epochs", 0) * steps_per_epoch)
        options = dict(self.optimizer)
        options["frozen"] = tuple(options.get("frozen", ()))
        return ptd.Optimizer(total_steps=total, warmup_steps=min(warm_up, total - 1), **options)

    def leaves(self, model: ptd.SequenceModel, seed: int) -> dict[str, NDArray[np.float64]]:
        """Initial parameters under a seed."""
        return model.initialize(np.random.default_rng(seed), **self.initial)

    def as_json(self) -> dict[str, Any]:
        """Every option, for records."""
        return dataclasses.asdict(self)


def names(task_name: str) -> list[str]:
    """The recipes of a task."""
    return list(_file(task_name))


def recipe(task_name: str, name: str) -> Recipe:
    """A recipe by the names of its task and itself, or as FILE.toml:NAME.

    Raises:
        ValueError: there is none of that name, or its file has an option nobody reads.
    """
    task(task_name)
    file, _, own = name.rpartition(":")
    if file:
        tables, name = tomllib.loads(Path(file).read_text(encoding="utf-8")), own
    else:
        tables = _file(task_name)
    checks.choice("recipe", name, tables)
    merged = _merged(tables, name)
    if unknown := merged.keys() - {*TABLES, "of", "note"} | merged["training"].keys() - TRAINING:
        raise ValueError(
            f"{task_name} {name}: expected the tables {', '.join(TABLES)}, got also {sorted(unknown)[0]!r}"
        )
    return Recipe(task_name, name, merged.get("of", ""), merged.get("note", ""), *(merged[t] for t in TABLES))


def _file(task_name: str) -> dict[str, Any]:
    # The stand-in for Retrieval and permuted MNIST are run as what they stand in for.
    shared = {"same-film": "retrieval", "pmnist": "mnist"}
    path = files(__package__) / "recipes" / f"{shared.get(task_name, task_name)}.toml"
    if not path.is_file():
        raise checks.fail("task", f"one with recipes, of {', '.join(TASKS)}", repr(task_name))
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _merged(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A recipe's tables over those it is like."""
    own = dict(tables[name])
    before = _merged(tables, own.pop("like")) if "like" in own else {table: {} for table in TABLES}
    return {
        key: {**before[key], **own.get(key, {})} if key in TABLES else own.get(key, before.get(key))
        for key in before.keys() | own.keys()
    }
