"""The command ``ptd train``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ptd import checks, extras


def train(
    task: Annotated[str, typer.Argument(help="a task with a made set; ptd data list")],
    recipe: Annotated[str, typer.Option(help="a recipe of the task, as s5-ptd; or FILE.toml:NAME")],
    backend: Annotated[str, typer.Option(help="a registered backend that trains, or module:object")] = "jax",
    seed: Annotated[int, typer.Option(help="of initial parameters, batches and dropout")] = 0,
    budget: Annotated[
        str | None, typer.Option(help="stop, save and exit 0 within this time, as 9m; then --resume")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; runs/TASK-RECIPE-BACKEND-SEED by default")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the folder's checkpoint, or begin if it has none")] = False,
    epochs: Annotated[
        int | None, typer.Option(help="another number than the recipe's: a trial, never a result")
    ] = None,
    activations: Annotated[
        str | None, typer.Option(help="a narrower dtype between encoder and pooling, as bfloat16; said in the record")
    ] = None,
    devices: Annotated[
        int, typer.Option(help="of one host, which share every batch (jax, torch); a run may go on on another number")
    ] = 1,
    root: Annotated[Path | None, typer.Option(help="the data folder; PTD_DATA by default")] = None,
    note: Annotated[str, typer.Option(help="what was special about the run, for its record")] = "",
) -> None:
    """Train a recipe of the Long Range Arena; resumable, with checkpoints, a learning curve and a record.

    A complete run leaves model.safetensors, which ptd.load reads and every backend runs.

    Several runs fit on one GPU as processes of their own; for jax set XLA_PYTHON_CLIENT_PREALLOCATE=false then.
    """
    from .clock import Clock, seconds

    clock = Clock(None if budget is None else seconds(budget))  # before anything slow is imported

    extras.require("matplotlib", "ptd train", "lra")  # the curve is drawn at the end
    if epochs is not None:
        checks.positive_integer("epochs", epochs)
    checks.number("seed", seed, 0, 1 << 32, "an integer in 0..2^32 - 1")

    import ptd
    from ptd.console import Lines

    from . import lock, store
    from . import recipe as recipes
    from .training import Run

    found = recipes.recipe(task, recipe)
    runs_on = ptd.backend(backend)
    if why := runs_on.unsupported.get("training"):
        raise ValueError(f"backend: expected one that trains, got {runs_on.name}: {why}; ptd backends lists others")
    folder = out or Path("runs") / f"{task}-{found.name}-{runs_on.name}-{seed}"
    with lock.alone(folder / ".lock", "out", "a folder"):
        if (folder / "checkpoint.json").exists() and not resume:
            raise ValueError(f"out: expected a folder without a run, got {folder}; pass --resume or another --out")
        data = store.load(store.root(root), task)
        console = Lines()
        with clock, _bar(console, f"{task} {recipe} {seed}") as report:
            options: dict[str, Any] = {"epochs": epochs, "activations": activations, "devices": devices}
            run = Run(found, data, runs_on, seed, folder, **options, report=report)
            _announce(console, run, resume and run.restore())
            complete = _go(console, run, clock, note)
        _conclude(console, run, complete, clock.why)
    # A stopped run is no failure: whoever set the budget resumes it.
    sys.stdout.flush()


def _go(console: Any, run: Any, clock: Any, note: str) -> bool:
    """Run until it is complete or stopped, and record it; one that was complete before keeps its record."""
    from . import results
    from .training import MODEL, Diverged

    recorded, _ = results.earlier(results.path(run))
    complete = run.progress.test is not None
    if complete and not (run.folder / MODEL).exists():  # as of runs from before it was written
        run.write_model()
    if complete and recorded.get("state") == "complete":
        if note:
            results.write(results.path(run), recorded | {"note": note})
        return True
    try:
        complete = complete or run.go(clock)
    except Diverged:
        _write(console, run, "diverged", note)
        raise
    except BrokenPipeError:
        _write(console, run, "running", note)
        raise
    _write(console, run, "complete" if complete else "running", note)
    return complete


def _announce(console: Any, run: Any, resumed: bool) -> None:
    p, parts = run.progress, {name: len(part.targets) for name, part in run.data.splits.items()}
    state = f"resumed at epoch {p.epoch}, step {p.step}" if resumed else "from the start"
    several = f"{run.devices} x " if run.devices > 1 else ""
    trial = "" if run.epochs == run.recipe.epochs else f" (a trial: the recipe has {run.recipe.epochs})"
    console.say(
        f"{run.data.key}: {', '.join(f'{count} {name}' for name, count in parts.items())}\n"
        f"{run.backend.name} on {several}{run.backend.device()}, seed {run.seed}, "
        f"{run.epochs} epochs{trial} of {run.steps} steps; {state}"
    )


def _conclude(console: Any, run: Any, complete: bool, why: str) -> None:
    from .training import MODEL

    p = run.progress
    speed = "" if run.tokens_per_second is None else f", {run.tokens_per_second / 1e6:.3g} Mtoken/s"
    time = f"{p.seconds:.0f} s in training steps{speed}"
    if complete:
        console.say(f"test accuracy {100 * p.test:.2f} % at epoch {p.best['epoch']}, {time}")
        console.say(f'ptd.load("{run.folder / MODEL}") runs in any backend')
    else:
        console.say(f"stopped, {why}: epoch {p.epoch}, step {p.step} of {run.steps}, {time}; go on with --resume")


def _write(console: Any, run: Any, state: str, note: str) -> None:
    """The record and the curve."""
    from . import curve, results, standings

    record = results.of(run, state, note)
    target = standings.targets()["accuracy"].get(run.recipe.of, {}).get(run.recipe.task)
    if lost := results.renew(results.path(run), record):
        console.say(f"{lost}: it is written anew, without what it said besides")
    curve.write(run.folder, run.progress.curve, f"{run.recipe.task} {run.recipe.name}, seed {run.seed}", target)


@contextmanager
def _bar(console: Any, title: str) -> Iterator[Any]:
    """A bar over the steps of the run, and a line for every epoch."""
    from rich.progress import BarColumn, TimeElapsedColumn

    from ptd.console import bar

    with bar(console, BarColumn(), "{task.fields[status]}", TimeElapsedColumn()) as shown:
        task = shown.add_task(title, total=None, status="compiling")

        def report(run: Any, loss: float) -> None:
            p = run.progress
            done, total = p.epoch * run.steps + p.step, run.epochs * run.steps
            shown.update(task, completed=done, total=total, status=f"epoch {p.epoch + 1}/{run.epochs}  loss {loss:.4f}")
            if not p.step and p.curve:
                row = p.curve[-1]
                console.say(
                    f"epoch {row['epoch']:4}  loss {row['loss']:.4f}  validation {100 * row['validation']:.2f} %  "
                    f"{row['seconds']:.0f} s"
                )

        yield report
