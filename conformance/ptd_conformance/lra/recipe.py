"""Recipes: how one model is trained on one task, read from TOML. They are data; this is all that interprets them.

A task's file has one table per recipe with the tables layer, initial, model, optimizer and training. `like` names the
recipe of the same file whose values hold where a table says nothing else; `of` is the published model it repeats.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptd
from ptd import checks
from ptd.initialization import INITIALIZERS
from ptd.layers import LAYERS

from .tasks import TASKS, task

TABLES = ("layer", "initial", "model", "optimizer", "training")
TRAINING = {"batch", "epochs", "warmup_epochs", "warmup_steps", "schedule_steps"}
#: What is given besides by the code to what reads a table.
GIVEN: dict[str, set[str]] = {
    "layer": set(),
    "initial": {"layer", "rng"},
    "model": {"layer", "d_input", "d_output"},
    "optimizer": {"total_steps", "warmup_steps"},
}


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        task, name: where it is found.
        of: the published model it repeats, as targets are listed; "" if there is none.
        note: what it does differently and why.
        layer: kind and fields of the layer.
        initial: options of SequenceModel.initialize.
        model: fields of ptd.SequenceModel.
        optimizer: fields of ptd.Optimizer.
        training: batch, epochs, warmup_epochs or warmup_steps, and schedule_steps: those until the rate is 0, where
            they are more than the run has.
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
        ends = {"input": what.input, "encoder": "embedding" if what.input is None else "linear", "pair": what.pair}
        return ptd.SequenceModel(
            LAYERS[kind](**fields), d_input=d_input, d_output=what.classes, **{**ends, **self.model}
        )

    def rule(self, steps_per_epoch: int, epochs: int) -> ptd.Optimizer:
        """The optimiser of a run of so many steps."""
        steps = steps_per_epoch * epochs
        total = self.training.get("schedule_steps", steps)
        if total < steps:
            raise checks.fail("schedule_steps", f"at least the {steps} steps of {epochs} epochs", total, "train fewer")
        warm_up = self.training.get("warmup_steps", self.training.get("warmup_epochs", 0) * steps_per_epoch)
        options = dict(self.optimizer)
        if isinstance(frozen := options.get("frozen"), list):
            options["frozen"] = tuple(frozen)
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
        ValueError: there is none of that name, or its file is no recipe's: lacks an option, or has one nobody reads.
    """
    task(task_name)
    if name.endswith(".toml"):
        there = ", ".join(f"{name}:{table}" for table in _own(Path(name)))
        raise checks.fail("recipe", "FILE.toml:NAME", repr(name), f"the file has {there or 'none'}")
    file, _, name = name.rpartition(":")
    tables = _own(Path(file)) if file else _file(task_name)
    checks.choice("recipe", name, tables)
    merged = _merged(file or task_name, tables, name)
    _check(f"{file or task_name} {name}", merged)
    return Recipe(task_name, name, merged.get("of", ""), merged.get("note", ""), *(merged[t] for t in TABLES))


def _file(task_name: str) -> dict[str, Any]:
    # The stand-in for Retrieval and permuted MNIST are run as what they stand in for.
    shared = {"same-film": "retrieval", "pmnist": "mnist"}
    path = files(__package__) / "recipes" / f"{shared.get(task_name, task_name)}.toml"
    if not path.is_file():
        raise checks.fail("task", f"one with recipes, of {', '.join(TASKS)}", repr(task_name))
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _own(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise checks.fail("recipe", "a file FILE.toml:NAME", f"no file {path}", "pass the path of one") from error
    except ValueError as error:
        raise checks.fail(f"{path}", "recipes in TOML", error) from error


def _merged(file: str, tables: Mapping[str, Any], name: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's tables over those it is like."""
    if name in heirs:
        raise checks.fail(f"{file} {name}", "`like` to end at some recipe", " like ".join((*heirs, name)), "drop one")
    if not isinstance(found := tables.get(name), Mapping):
        got = "none" if found is None else repr(found)
        raise checks.fail(f"{file} {(*heirs, name)[0]}", f"a table [{name}] in the file", got)
    own = dict(found)
    for table in TABLES:
        checks.instance(f"{file} {name} {table}", own.get(table, {}), Mapping, "a table")
    before: dict[str, Any] = {table: {} for table in TABLES}
    if "like" in own:
        checks.instance(f"{file} {name} like", like := own.pop("like"), str, "a recipe's name")
        before = _merged(file, tables, like, (*heirs, name))
    return {
        key: {**before[key], **own.get(key, {})} if key in TABLES else own.get(key, before.get(key))
        for key in before.keys() | own.keys()
    }


def _check(place: str, merged: Mapping[str, Any]) -> None:
    """Raise unless every table has what it needs, and nothing that is not read; values are checked by their readers."""
    _check_names(place, merged, {*TABLES, "of", "note"}, set())
    given = dict(merged) | {"layer": dict(merged["layer"])}
    checks.choice(f"{place} layer.kind", kind := given["layer"].pop("kind", None), LAYERS)
    layer = LAYERS[kind]
    readers: list[Callable[..., Any]] = [layer, INITIALIZERS[layer], ptd.SequenceModel, ptd.Optimizer]
    for table, reader in zip(GIVEN, readers, strict=True):
        options = inspect.signature(reader).parameters
        known = options.keys() - GIVEN[table]
        needed = {name for name in known if options[name].default is inspect.Parameter.empty}
        beside = {"weights"} if table == "initial" else set()  # read by SequenceModel.initialize itself
        _check_names(f"{place} {table}", given[table], known | beside, needed)
    training = merged["training"]
    _check_names(f"{place} training", training, TRAINING, {"batch", "epochs"})
    for name in ("batch", "epochs"):
        checks.positive_integer(f"{place} training.{name}", training[name])
    for name in training.keys() - {"batch", "epochs"}:
        checks.number(f"{place} training.{name}", training[name], 0, math.inf, "a number >= 0")


def _check_names(place: str, given: Iterable[str], known: Iterable[str], needed: Set[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise checks.fail(place, f"only {', '.join(sorted(known))}", f"also {unknown[0]!r}")
    if lacking := sorted(needed - set(given)):
        raise checks.fail(place, f"at least {', '.join(sorted(needed))}", f"no {lacking[0]}")
