"""Recorded accuracies against the published ones: the report's table, and what `ptd conformance --lra` checks."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from . import robustness
from .recipe import recipe
from .results import Record, read_all, sampling_error
from .tasks import TASKS


@dataclass(frozen=True)
class Standing:
    """How a recipe stands on a task on one backend.

    Attributes:
        task, recipe, backend: what ran.
        device: where, all devices of its runs.
        target: published test accuracy in per cent, or None.
        accuracies: test accuracies of complete full runs in per cent, by seed.
        outcome: "met", "within error", "missed", "running", "diverged", "trial" or "not run".
        hours: in training steps, of all its runs.
        note: why, where there is something to say.
    """

    task: str
    recipe: str
    backend: str
    device: str
    target: float | None
    accuracies: dict[int, float]
    outcome: str
    hours: float
    note: str

    @property
    def mean(self) -> float | None:
        """Mean accuracy over seeds."""
        return float(np.mean(list(self.accuracies.values()))) if self.accuracies else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, where there is more than one."""
        return float(np.std(list(self.accuracies.values()), ddof=1)) if len(self.accuracies) > 1 else None


def targets() -> dict[str, Any]:
    """targets.toml: published accuracies by model and task, runs that are due, and notes."""
    return tomllib.loads((files(__package__) / "targets.toml").read_text(encoding="utf-8"))


def standings(records: Iterable[Record]) -> list[Standing]:
    """By task, every recipe that ran, then every one that is due and did not."""
    records, published = list(records), targets()
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        key = (record["task"], record["recipe"], record["backend"])
        groups.setdefault(key, []).append(record)
    found = [_standing(key, group, published) for key, group in groups.items()]
    ran = {(s.task, s.recipe) for s in found}
    for task, recipes in published["due"].items():
        for due in recipes:
            if (task, due) not in ran:
                target = published["accuracy"].get(recipe(task, due).of, {}).get(task)
                found.append(Standing(task, due, "", "", target, {}, "not run", 0.0, published["notes"].get(task, "")))
    order = list(TASKS)
    return sorted(found, key=lambda s: (order.index(s.task), s.outcome == "not run", s.recipe, s.backend))


def _standing(key: tuple[str, str, str], group: list[Record], published: dict[str, Any]) -> Standing:
    task = key[0]
    devices = ", ".join(sorted({r["device"] for r in group}))
    target = published["accuracy"].get(group[0]["of"], {}).get(task)
    counted = {r["seed"]: 100 * r["test"] for r in group if r["full"] and r["state"] == "complete"}
    outcome = _outcome(group, counted, target)
    narrower = {r["activations"] for r in group} - {"float32"}
    notes = [f"{dtype} activations" for dtype in sorted(narrower)]
    if (several := sorted({n for r in group for n in r["devices"]})) != [1]:
        notes.append(f"on {' and '.join(map(str, several))} devices")
    notes += [
        f"best validation so far {100 * r['best']['validation']:.2f}, epoch {r['best']['epoch']} of {r['epochs']}"
        for r in group
        if r["state"] == "running" and r.get("best")
    ]
    notes += [_further(r) for r in group if "further" in r]
    notes += [r.get("note", "") for r in group]
    hours = sum(r.get("training_seconds", 0) for r in group) / 3600
    return Standing(*key, devices, target, counted, outcome, hours, "; ".join(dict.fromkeys(filter(None, notes))))


def _further(record: Record) -> str:
    """What `ptd retest` found: no outcome, since the published accuracy is of a test set."""
    found = record["further"]
    error = 100 * sampling_error(found["accuracy"], found["samples"])
    return f"seed {record['seed']}: {100 * found['accuracy']:.2f} ± {error:.2f} on {found['samples']} further samples"


def _outcome(group: list[Record], counted: dict[int, float], target: float | None) -> str:
    """At or above the target within one standard deviation of the seeds; one seed has none, but its test set has."""
    if counted:
        values = list(counted.values())
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        if target is None or np.mean(values) + spread >= target:
            return "met"
        close = len(values) == 1 and values[0] + _sampling_error(values[0], group) >= target
        return "within error" if close else "missed"
    full = [r for r in group if r["full"]]
    return full[0]["state"] if full else "trial"


def _sampling_error(accuracy: float, group: list[Record]) -> float:
    """Standard deviation, in points, of an accuracy counted on as many test samples as a record's."""
    return 100 * sampling_error(accuracy / 100, min(record["data"]["splits"]["test"] for record in group))


COLUMNS = ("task", "recipe", "backend", "device", "published", "seeds", "accuracy", "outcome", "hours", "note")


def rows(found: Iterable[Standing]) -> list[list[str]]:
    """The table of standings, as text; what did not run of a task is one row."""
    table: list[list[str]] = []
    for (task, due), group in itertools.groupby(found, lambda s: (s.task, s.outcome == "not run")):
        title = TASKS[task].title
        if due:
            waiting = list(group)
            recipes = ", ".join(s.recipe for s in waiting)
            table.append([title, recipes, *[""] * 5, "not run", "", waiting[0].note])
        else:
            table += [[title, *_cells(s)] for s in group]
    return table


def _cells(s: Standing) -> list[str]:
    """The row of a recipe that ran, after its task."""
    target = "" if s.target is None else f"{s.target:.2f}"
    seeds = ", ".join(map(str, sorted(s.accuracies)))
    return [s.recipe, s.backend, s.device, target, seeds, _accuracy(s), s.outcome, f"{s.hours:.2f}", s.note]


def remarks(found: Iterable[Standing]) -> dict[str, str]:
    """What there is to say of all results of a task, by its title, of tasks that ran."""
    known, ran = targets()["remarks"], {s.task for s in found if s.backend}
    return {TASKS[task].title: known[task] for task in TASKS if task in ran and task in known}


def summary(folders: Iterable[Path]) -> list[list[str]]:
    """Recipes by tasks, in short: mean test accuracy and spread over seeds (published), bold unless that is missed."""
    found = standings(record for folder in folders if folder.is_dir() for record in read_all(folder))
    ran = {(s.task, s.recipe, s.backend): s for s in found if s.target is not None and s.backend}
    complete = [key for key, s in ran.items() if s.accuracies]
    tasks = [task for task in TASKS if task in {task for task, *_ in ran}]
    table = [["recipe", "backend", *(TASKS[task].title for task in tasks)]]
    for recipe_name, backend in sorted({key[1:] for key in complete}):
        cells = [_short(ran.get((task, recipe_name, backend))) for task in tasks]
        table.append([recipe_name, backend, *cells])
    return table


def _short(s: Standing | None) -> str:
    """A recipe's cell in the summary."""
    if s is None:
        return ""
    if s.mean is None:
        return f"{s.outcome} ({s.target:.2f})"
    shown = _accuracy(s) if s.outcome == "missed" else f"**{_accuracy(s)}**"
    return f"{shown} ({s.target:.2f})"


def _accuracy(s: Standing) -> str:
    """Mean and spread, as far as there are any."""
    spread = "" if s.spread is None else f" ± {s.spread:.2f}"
    return "" if s.mean is None else f"{s.mean:.2f}{spread}"


def section(folder: Path) -> list[dict[str, Any]]:
    """The report's tables: standings of a folder's records, and its robustness results."""
    records = read_all(folder) if folder.is_dir() else []
    note = (
        "Test accuracy in per cent of the parameters that validation selected, against the published one; met: at or "
    )
    note += "above it within one standard deviation of the seeds; within error: one seed, below it by less than the "
    note += "standard deviation sqrt(p (1 - p) / n) of its n test samples. Full recipes only; trials do not count."
    found = standings(records)
    said, table = remarks(found), []
    for title, group in itertools.groupby(rows(found), lambda row: row[0]):
        table += [[title, *[""] * 8, said[title]]] if title in said else []
        table += group
    standing = {"title": "Accuracy", "note": note, "columns": COLUMNS, "rows": table}
    return [standing, *robustness.table(folder)]
