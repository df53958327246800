"""The command ``ptd retest``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def retest(
    runs: Annotated[list[Path], typer.Argument(help="folders of complete runs of ptd train, of one task")],
    further: Annotated[Path, typer.Option(help="a data folder with a set of the same task, made with another --seed")],
    backend: Annotated[
        str | None, typer.Option(help="the backend the runs were trained on, where it is not registered")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="the data folder of the runs; PTD_DATA by default")] = None,
) -> None:
    """Test complete runs on further samples of a generated task: a test set's own chance falls with their number.

    Every sample of the further set counts, whichever split it is in. The run's record says what was found.
    """
    from ptd import checks
    from ptd.console import Lines

    from . import results, store
    from .training import Run

    console = Lines()
    tasks = sorted({_task(folder) for folder in runs})
    if len(tasks) != 1:
        raise checks.fail("runs", "runs of one task", ", ".join(tasks), "one call a task")
    own, other = store.load(store.root(root), tasks[0]), store.load(further, tasks[0])
    _check_unseen(own.manifest["made_from"], other.manifest["made_from"])
    for folder in runs:
        run = Run.selected(folder, own, backend)
        path = results.path(run)
        accuracy, samples = run.accuracy_on_all(other)
        found = {"key": other.key, "made_from": other.manifest["made_from"], "samples": samples, "accuracy": accuracy}
        results.write(path, results.read(path) | {"further": found})
        error = results.sampling_error(accuracy, samples)
        console.say(f"{path.stem}: {100 * accuracy:.2f} % of {samples}, standard error {100 * error:.2f}")


def _check_unseen(own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise unless two sets are of one generator under different seeds: those of one seed begin alike."""
    from ptd import checks

    for made_from in (own, other):
        if "generator" not in made_from:
            raise checks.fail("further", "sets of a generator", made_from, "only generated tasks have further samples")
    if own["generator"] != other["generator"] or own["seed"] == other["seed"]:
        expected = f"a set of {own['generator']!r} with another seed than {own['seed']}"
        raise checks.fail("further", expected, other, "ptd data make --seed")


def _task(folder: Path) -> str:
    from ptd import checks

    from .training import saved

    if (found := saved(folder)) is None:
        raise checks.fail("runs", "folders of complete runs", folder, "ptd train")
    return found["identity"]["recipe"]["task"]
