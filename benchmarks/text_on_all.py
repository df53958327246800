"""Text trained on all 25,000 training reviews, as published models were, and tested after the last epoch.

Recipes of this package hold a tenth of the reviews out to select on. The difference is what that costs.

    python benchmarks/text_on_all.py s5 --backend torch --activations bfloat16 --out FOLDER --budget 9m
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


def on_all(data: store.DataSet) -> store.DataSet:
    """The set with the held-out reviews among those to train on: they are validated on still, which tells nothing."""
    parts = [data.splits[name] for name in ("train", "validation")]
    columns = ([getattr(part, field.name) for part in parts] for field in dataclasses.fields(store.Split))
    joined = store.Split(*(None if column[0] is None else np.concatenate(column) for column in columns))
    return dataclasses.replace(data, key=f"{data.key}-all", splits={**data.splits, "train": joined})


def main() -> None:
    """Train, or go on, and print the test accuracy after the last epoch."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--activations")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=seconds)
    chosen = parser.parse_args()
    with Clock(chosen.budget) as clock:
        data = on_all(store.load(store.root(), "text"))
        backend = ptd.backend(chosen.backend)
        run = Run(recipe("text", chosen.recipe), data, backend, chosen.seed, chosen.out, activations=chosen.activations)
        run.restore()
        complete = run.go(clock)
    if complete:
        # What validation selects is trained on; the learner holds the last parameters again.
        with backend.fast_products():
            last = run.accuracy("test")
        print(f"{chosen.recipe}, seed {chosen.seed}: {100 * last:.2f} % of the test set after the last epoch")
    else:
        print(f"stopped at epoch {run.progress.epoch}, step {run.progress.step}, {clock.why}; the same command goes on")


if __name__ == "__main__":
    main()
