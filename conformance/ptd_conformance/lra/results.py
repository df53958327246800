"""Records of runs: what ran where, how it went, and whether it reached what was published."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import ptd
from ptd.parameters import replace_file

from . import robustness
from .recipe import names, recipe
from .tasks import TASKS
from .training import Run

FORMAT = 1
STATES = ("running", "complete", "diverged")
Record = dict[str, Any]


def of(run: Run, state: str, note: str = "") -> Record:
    """The record of a run in one of STATES."""
    p, data = run.progress, run.data
    return {
        "lra": FORMAT,
        "task": run.recipe.task,
        "recipe": run.recipe.name,
        "of": run.recipe.of,
        "backend": run.backend.name,
        "device": run.backend.device(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": run.backend.versions(),
        "commit": commit(),
        "source": source(),
        "seed": run.seed,
        "data": {"key": data.key, "made_from": data.manifest["made_from"], "splits": data.manifest["splits"]},
        "options": run.recipe.as_json(),
        "parameters": sum(int(np.prod(shape)) for shape in run.model.shapes().values()),
        "epochs": run.epochs,
        "full": is_full(run),
        "state": state,
        "note": note,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "sessions": p.sessions,
        "training_seconds": round(p.seconds, 1),
        "tokens_per_second": None if run.tokens_per_second is None else round(run.tokens_per_second),
        "milliseconds_per_step": _per_step(run),
        "best": p.best,
        "test": p.test,
        "curve": p.curve,
    }


def is_full(run: Run) -> bool:
    """Whether a run is a recipe of this package, unchanged, on all of its task's data: only these count."""
    own = run.recipe.name in names(run.recipe.task) and recipe(run.recipe.task, run.recipe.name) == run.recipe
    return own and run.epochs == run.recipe.epochs and bool(run.data.manifest.get("full"))


def _per_step(run: Run) -> float | None:
    p = run.progress
    return round(1e3 * p.timed_seconds * run.recipe.batch / p.timed_samples, 3) if p.timed_samples else None


def name(record: Record) -> str:
    """The name of a record's file, without ending."""
    return "-".join(str(record[part]) for part in ("task", "recipe", "backend", "seed"))


def write(path: Path, record: Record) -> None:
    """Write a record, atomically, one row of its curve to a line."""
    rows = ",\n  ".join(json.dumps(row) for row in record["curve"])
    head = json.dumps({key: value for key, value in record.items() if key != "curve"}, indent=1)
    replace_file(path, f'{head[:-2]},\n "curve": [\n  {rows}\n ]\n}}\n'.encode())


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: it is none of this format, or of an unknown task or state.
    """
    try:
        record = json.loads(path.read_text())
        known = record["lra"] == FORMAT and record["task"] in TASKS and record["state"] in STATES
        missing = {"recipe", "of", "backend", "device", "seed", "epochs", "full", "test", "curve"} - record.keys()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name}: expected the record of a run, got {error!r}; copy it again") from error
    if not known or missing:
        got = ", ".join(sorted(missing)) + " missing" if missing else "another format, task or state"
        raise ValueError(f"{path.name}: expected the record of a run, got {got}; copy it again")
    return record


def read_all(folder: Path) -> list[Record]:
    """The records of a folder, in the order of their names."""
    return [read(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith(robustness.KIND)]


def commit() -> str:
    """The commit of the working tree that is run, or what the environment's PTD_COMMIT says."""
    if given := os.environ.get("PTD_COMMIT"):
        return given
    here = Path(ptd.__file__).parent
    ask = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def source() -> str:
    """sha256 over the Python files and recipes that ran, so that a copy without a commit is known too."""
    import ptd_conformance

    found = hashlib.sha256()
    for package in (ptd, ptd_conformance):
        folder = Path(str(package.__file__)).parent
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.toml")]):
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


# --- against what was published


@dataclass(frozen=True)
class Standing:
    """How a recipe stands on a task on one backend and device.

    Attributes:
        task, recipe, backend, device: what ran.
        target: published test accuracy in per cent, or None.
        accuracies: test accuracies of complete full runs in per cent, by seed.
        outcome: "met", "missed", "running", "diverged", "trial" or "not run".
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
    return tomllib.loads((files(__package__) / "targets.toml").read_text())


def standings(records: Iterable[Record]) -> list[Standing]:
    """Every recipe that ran, in the order of tasks, and every run that is due and did not."""
    records, published = list(records), targets()
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        key = (record["task"], record["recipe"], record["backend"], record["device"])
        groups.setdefault(key, []).append(record)
    found = [_standing(key, group, published) for key, group in groups.items()]
    ran = {(s.task, s.recipe) for s in found}
    for task, recipes in published["due"].items():
        for due in recipes:
            if (task, due) not in ran:
                note = published["notes"].get(f"{task} {due}", published["notes"].get(task, ""))
                target = published["accuracy"].get(recipe(task, due).of, {}).get(task)
                found.append(Standing(task, due, "", "", target, {}, "not run", 0.0, note))
    return sorted(found, key=lambda s: (list(TASKS).index(s.task), s.recipe, s.backend, s.device))


def _standing(key: tuple[str, str, str, str], group: list[Record], published: dict[str, Any]) -> Standing:
    task, ran, *_ = key
    target = published["accuracy"].get(group[0]["of"], {}).get(task)
    counted = {r["seed"]: 100 * r["test"] for r in group if r["full"] and r["state"] == "complete"}
    outcome = _outcome(group, counted, target)
    notes = [published["notes"].get(f"{task} {ran}", ""), *(r.get("note", "") for r in group)]
    hours = sum(r.get("training_seconds", 0) for r in group) / 3600
    return Standing(*key, target, counted, outcome, hours, "; ".join(dict.fromkeys(filter(None, notes))))


def _outcome(group: list[Record], counted: dict[int, float], target: float | None) -> str:
    """At or above the target within one standard deviation of the seeds' spread; one seed has no spread to lean on."""
    if counted:
        values = list(counted.values())
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return "met" if target is None or np.mean(values) + spread >= target else "missed"
    full = [r for r in group if r["full"]]
    return full[0]["state"] if full else "trial"


COLUMNS = ("task", "recipe", "backend", "device", "published", "seeds", "accuracy", "outcome", "hours", "note")


def rows(found: Iterable[Standing]) -> list[list[str]]:
    """The table of standings, as text."""
    table = []
    for s in found:
        spread = "" if s.spread is None else f" ± {s.spread:.2f}"
        accuracy = "" if s.mean is None else f"{s.mean:.2f}{spread}"
        target = "" if s.target is None else f"{s.target:.2f}"
        seeds, hours = ", ".join(map(str, sorted(s.accuracies))), f"{s.hours:.2f}" if s.backend else ""
        cells = [TASKS[s.task].title, s.recipe, s.backend, s.device, target, seeds, accuracy, s.outcome, hours, s.note]
        table.append(cells)
    return table


def section(folder: Path) -> list[dict[str, Any]]:
    """The report's tables: standings of a folder's records, and its robustness results."""
    records = read_all(folder) if folder.is_dir() else []
    note = (
        "Test accuracy in per cent of the parameters that validation selected, against the published one; met: at or "
    )
    note += "above it within one standard deviation of the seeds. Full recipes only; trials do not count."
    standing = {"title": "Accuracy", "note": note, "columns": COLUMNS, "rows": rows(standings(records))}
    return [standing, *robustness.table(folder)]
