"""Records of runs: what ran where, in which versions, and how it went."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import ptd
from ptd import checks
from ptd.parameters import replace_file

from .. import json_file
from .checkpoint import MANIFEST
from .recipe import names, recipe
from .tasks import TASKS
from .training import Run

FORMAT = 1
#: What the names of results under noise begin with, which lie in the same folder; see robustness.py.
UNDER_NOISE = "robustness"
STATES = ("running", "complete", "diverged")
Record = dict[str, Any]
#: What is read of every record; others have what older ones lack.
FIELDS = {str: "task recipe of backend device state", object: "lra seed epochs full test curve data"}


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
        "devices": p.devices,
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": run.backend.versions(),
        "commit": commit(),
        "source": source(),
        "seed": run.seed,
        "data": {"key": data.key, "made_from": data.manifest["made_from"], "splits": data.manifest["splits"]},
        "options": run.recipe.as_json(),
        "parameters": sum(int(np.prod(shape)) for shape in run.model.shapes().values()),
        "epochs": run.epochs,
        "activations": run.activations or "float32",
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
    return _name(*(record[part] for part in ("task", "recipe", "backend", "seed")))


def path(run: Run) -> Path:
    """Where the record of a run lies, in its folder."""
    return run.folder / f"{_name(run.recipe.task, run.recipe.name, run.backend.name, run.seed)}.json"


def _name(task: str, recipe: str, backend: str, seed: int) -> str:
    return f"{task}-{recipe}-{backend}-{seed}"


def sampling_error(accuracy: float, samples: int) -> float:
    """Standard deviation of an accuracy, both in [0, 1], counted on so many samples."""
    return math.sqrt(accuracy * (1 - accuracy) / samples)


def write(path: Path, record: Record) -> None:
    """Write a record, atomically, one row of its curve to a line."""
    rows = ",\n  ".join(json.dumps(row) for row in record["curve"])
    head = json.dumps({key: value for key, value in record.items() if key != "curve"}, indent=1)
    replace_file(path, f'{head[:-2]},\n "curve": [\n  {rows}\n ]\n}}\n'.encode())


def renew(path: Path, record: Record) -> str:
    """Write the record of a run over an earlier one; what `ptd retest` found stays, and the note if none is new.

    Returns:
        Why the earlier one could not be read and what it had is lost, or "".
    """
    before, lost = earlier(path)
    kept = {name: before[name] for name in ("further",) if name in before}
    write(path, record | kept | {"note": record["note"] or before.get("note", "")})
    return lost


def earlier(path: Path) -> tuple[Record, str]:
    """The record that is there, if any, and why it cannot be read, or "": a run can write its record again."""
    try:
        return read(path) if path.exists() else {}, ""
    except ValueError as error:
        return {}, str(error)


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: it is none of this format, or of an unknown task or state, or a field is missing.
    """
    record = json_file.read(path, "the record of a run", FIELDS, "copy it again")
    if record["lra"] != FORMAT or record["task"] not in TASKS or record["state"] not in STATES:
        raise checks.fail(path.name, "the record of a run", "another format, task or state", "copy it again")
    # Records from before activations could be narrower, and devices several, have none of that name.
    return {"activations": "float32", "devices": [1]} | record


def read_all(folder: Path) -> list[Record]:
    """The records of a folder, in the order of their names; it may be a run's own."""
    records = [path for path in sorted(folder.glob("*.json")) if path.name != MANIFEST]
    return [read(path) for path in records if not path.name.startswith(UNDER_NOISE)]


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
