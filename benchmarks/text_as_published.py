"""Text as published models were trained: on all 25,000 training reviews, each epoch on the test set, no validation set.

Recipes of this package hold a tenth of the reviews out to select on, and see the test set once. How far the last epoch
here is above them is what the tenth costs; how far the best one is above the last, what selecting on tests gains.

    python benchmarks/text_as_published.py s5 --backend torch --activations bfloat16 --out FOLDER --budget 9m
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

import ptd
from ptd_conformance.lra import store
from ptd_conformance.lra.clock import Clock, seconds
from ptd_conformance.lra.recipe import recipe
from ptd_conformance.lra.training import Run


def as_published(data: store.DataSet) -> store.DataSet:
    """The set with the held-out reviews among those to train on, and the test set in their place."""
    parts = [data.splits[name] for name in ("train", "validation")]
    columns = ([getattr(part, field.name) for part in parts] for field in dataclasses.fields(store.Split))
    joined = store.Split(*(None if column[0] is None else np.concatenate(column) for column in columns))
    test = data.splits["test"]
    return dataclasses.replace(data, key=f"{data.key}-all", splits={"train": joined, "validation": test, "test": test})


def main() -> None:
    """Train, or go on, and print the test accuracy of the last epoch and of the best."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--activations")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=seconds)
    chosen = parser.parse_args()
    with Clock(chosen.budget) as clock:
        data = as_published(store.load(store.root(), "text"))
        backend = ptd.backend(chosen.backend)
        run = Run(recipe("text", chosen.recipe), data, backend, chosen.seed, chosen.out, activations=chosen.activations)
        run.restore()
        complete = run.go(clock)
    if complete:
        last, best = run.progress.curve[-1], run.progress.best
        print(
            f"{chosen.recipe}, seed {chosen.seed}: {100 * last['validation']:.2f} % of the test set after the last "
            f"epoch, {100 * best['validation']:.2f} % after epoch {best['epoch']}, the best of them"
        )
    else:
        print(f"stopped at epoch {run.progress.epoch}, step {run.progress.step}, {clock.why}; the same command goes on")


if __name__ == "__main__":
    main()
