"""A recipe of S5 by the rules of the original program that ours does not follow, one by one or together.

Losses of both programs are equal to rounding once these are as there (notes.md, "The originals beside ours"), so what
they are worth at full size says whether an accuracy below the published one comes from the program:

    schedule   the first step at the full rate, before the warm-up; the cosine counts the warm-up's steps too, and so
               reaches 0 one warm-up before the last step
    padding    blocks see padding: it counts in the moments of batch norm, and the backward direction begins in it
    unclamped  no margin of Re Lambda
    weights    of linear maps are cut at two deviations

    python benchmarks/s5_as_original.py listops s5 --rules schedule padding unclamped weights --out FOLDER --budget 9m

The backend is torch. --further FOLDER tests a complete run on another set of the same generator as well, which makes
the test set's own chance small enough to tell half a point.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor

import ptd
from ptd.optimization import Optimizer
from ptd_conformance.lra import results, store
from ptd_conformance.lra.clock import Clock, seconds
from ptd_conformance.lra.recipe import Recipe, recipe
from ptd_conformance.lra.training import Run
from ptd_torch.adamw import AdamW
from ptd_torch.program import Program


def share(optimizer: Optimizer, steps: Tensor) -> Tensor:
    """The share of the peak rate that step number `steps`, from 0, is taken at."""
    warm, end = optimizer.warmup_steps, optimizer.total_steps - optimizer.warmup_steps
    step = steps.to(torch.float32)
    falling = 0.5 * (1 + torch.cos(math.pi * (step - 1).clamp(0, end) / end))
    return torch.where(step < 1, torch.ones_like(step), torch.where(step <= warm, step / max(warm, 1), falling))


def rates(adamw: AdamW, steps: Tensor) -> list[Tensor]:
    """In place of AdamW.rates."""
    return [share(adamw._optimizer, steps) * group.lr for group in adamw.groups]


class Unmasked(Program):
    """A program whose blocks are not told which samples are padding; pooling is."""

    def _ahead_of(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        return super()._ahead_of(x, None)

    def _block_of(self, leaves: dict, x: Tensor, known: Tensor | None, lengths: Tensor | None, *call: Any) -> Any:
        return super()._block_of(leaves, x, known, None, *call)


class Cut(Recipe):
    """A recipe whose linear maps begin with weights of the same variance cut at two deviations."""

    def leaves(self, model: ptd.SequenceModel, seed: int) -> dict[str, np.ndarray]:
        """Initial parameters under a seed."""
        leaves, rng = super().leaves(model, seed), np.random.default_rng([seed, 1])
        unit = truncnorm(-2, 2)
        shapes = {name: value.shape for name, value in leaves.items() if name.endswith(".weight")}
        scale = {name: 1 / unit.std() / math.sqrt(shape[1]) for name, shape in shapes.items()}
        return leaves | {name: scale[name] * unit.rvs(shape, random_state=rng) for name, shape in shapes.items()}


RULES = {
    "schedule": mock.patch.object(AdamW, "rates", rates),
    "padding": mock.patch("ptd_torch.training.Program", Unmasked),
    "unclamped": mock.patch("ptd.layers.layer.STABILITY_MARGIN", -math.inf),
    "weights": mock.patch(f"{__name__}.Recipe", Cut),
}


def renamed(found: Recipe, rules: list[str]) -> Recipe:
    """The recipe under a name that says its rules, so that no checkpoint of another goes on as this."""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return Recipe(**values | {"name": "-".join([found.name, "original", *rules])})


def go(chosen: argparse.Namespace) -> None:
    """Train, or go on, under the rules; of a complete run say the accuracies."""
    data = store.load(store.root(), chosen.task)
    found = renamed(recipe(chosen.task, chosen.recipe), chosen.rules)
    options = {"activations": chosen.activations, "epochs": chosen.epochs}
    with Clock(chosen.budget) as clock:
        run = Run(found, data, ptd.backend("torch"), chosen.seed, chosen.out, **options)
        run.restore()
        complete = run.progress.test is not None or run.go(clock)
    p, name = run.progress, f"{found.name}, seed {chosen.seed}"
    if not complete:
        print(f"{name}: stopped at epoch {p.epoch}, step {p.step}, {clock.why}; the same command goes on")
        return
    best = p.best["validation"]
    print(f"{name}: validation {100 * best:.2f} % at epoch {p.best['epoch']}, test {100 * p.test:.2f} %")
    if chosen.further:
        selected = Run.selected(chosen.out, data)
        accuracy, samples = selected.accuracy_on_all(store.load(chosen.further, chosen.task))
        error = results.sampling_error(accuracy, samples)
        print(f"{name}: {100 * accuracy:.2f} % of {samples} further samples, standard error {100 * error:.2f}")


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task")
    parser.add_argument("recipe")
    parser.add_argument("--rules", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--activations")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=seconds)
    parser.add_argument("--further", type=Path)
    chosen = parser.parse_args()
    patches = [RULES[rule] for rule in chosen.rules]
    for patch in patches:
        patch.start()
    go(chosen)


if __name__ == "__main__":
    main()
