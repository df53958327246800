"""A recipe by rules of the original program that ours does not follow, one by one or together.

Losses of both programs are equal to rounding once these are as there (notes.md, "The originals beside ours"), so what
they are worth at full size says whether an accuracy below the published one comes from the program:

    schedule   S5: the first step at the full rate, before the warm-up; the cosine counts the warm-up's steps too, and
               so reaches 0 one warm-up before the last step
    weights    S5: of linear maps are cut at two deviations
    unclamped  S5: no margin of Re Lambda
    modes      S4-PTD: all modes of the perturbed matrix, one of each pair without its frequency
    rising     S4-PTD on Text: a cosine that goes on past its zero at step 50,000; with --epochs 80 as published
    padding    blocks see padding: it counts in the moments of batch norm, and the backward direction begins in it
    reviews    Text: trained on all reviews, each epoch on the test set, which selects

    python benchmarks/as_original.py listops s5 --rules schedule padding unclamped weights --out FOLDER --budget 9m

The backend is torch. --further FOLDER tests a complete run on another set of the same generator as well, which makes
the test set's own chance small enough to tell half a point.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor

import ptd
from ptd import modes
from ptd.optimization import Optimizer
from ptd_conformance.lra import results, store
from ptd_conformance.lra.clock import Clock, seconds
from ptd_conformance.lra.recipe import Recipe, recipe
from ptd_conformance.lra.training import Run
from ptd_torch.adamw import AdamW
from ptd_torch.program import Program

#: The steps that S4-PTD's file for Text gives its schedule, of the 125,000 that it trains.
TEXT_SCHEDULE = 50_000
#: What that program raises every imaginary part to, also those of the other sign.
LEAST_FREQUENCY = 1e-4


def from_the_peak(optimizer: Optimizer, steps: Tensor) -> Tensor:
    """The share of the peak rate that step number `steps`, from 0, is taken at by S5's schedule."""
    warm, end = optimizer.warmup_steps, optimizer.total_steps - optimizer.warmup_steps
    step = steps.to(torch.float32)
    falling = 0.5 * (1 + torch.cos(math.pi * (step - 1).clamp(0, end) / end))
    return torch.where(step < 1, torch.ones_like(step), torch.where(step <= warm, step / max(warm, 1), falling))


def rising(optimizer: Optimizer, steps: Tensor) -> Tensor:
    """The same by S4-PTD's on Text."""
    warm, step = optimizer.warmup_steps, steps.to(torch.float32)
    cosine = 0.5 * (1 + torch.cos(math.pi * (step - warm) / (TEXT_SCHEDULE - warm)))
    return torch.where(step < warm, step / warm, cosine)


def scheduled(share: Callable[[Optimizer, Tensor], Tensor]) -> Any:
    """What stands in place of AdamW.rates."""
    return mock.patch.object(
        AdamW, "rates", lambda adamw, steps: [share(adamw._optimizer, steps) * group.lr for group in adamw.groups]
    )


class Unmasked(Program):
    """A program whose blocks are not told which samples are padding; pooling is."""

    def _ahead_of(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        return super()._ahead_of(x, None)

    def _block_of(self, leaves: dict, x: Tensor, known: Tensor | None, lengths: Tensor | None, *call: Any) -> Any:
        return super()._block_of(leaves, x, known, None, *call)


def cut(self: Recipe, model: ptd.SequenceModel, seed: int, leaves: Callable = Recipe.leaves) -> dict[str, np.ndarray]:
    """In place of Recipe.leaves: weights of linear maps of the same variance, cut at two deviations."""
    found, rng = leaves(self, model, seed), np.random.default_rng([seed, 1])
    unit = truncnorm(-2, 2)
    shapes = {name: value.shape for name, value in found.items() if name.endswith(".weight")}
    scale = {name: 1 / unit.std() / math.sqrt(shape[1]) for name, shape in shapes.items()}
    return found | {name: scale[name] * unit.rvs(shape, random_state=rng) for name, shape in shapes.items()}


def doubled(self: Recipe, d_input: int, description: Callable = Recipe.description) -> ptd.SequenceModel:
    """In place of Recipe.description: a pair of modes for every mode of the recipe's order."""
    model = description(self, d_input)
    return dataclasses.replace(model, layer=dataclasses.replace(model.layer, d_state=2 * model.layer.d_state))


def with_all_modes(self: Recipe, model: ptd.SequenceModel, seed: int) -> dict[str, np.ndarray]:
    """In place of Recipe.leaves, for such a model."""
    init = all_modes(model.layer.d_state // 2)
    return model.initialize(np.random.default_rng(seed), **{**self.initial, "init": init})


def all_modes(N: int) -> modes.Modes:
    """The N modes of PTD; of those whose frequency is not positive little is left but the decay."""
    found = modes.ptd(N, conj_sym=False)
    Lambda = found.Lambda.real + 1j * np.maximum(found.Lambda.imag, LEAST_FREQUENCY)
    return dataclasses.replace(found, Lambda=Lambda)


def with_all_reviews(root: Path, task: str, load: Callable = store.load) -> store.DataSet:
    """In place of store.load: the held-out reviews are among those to train on, and the test set in their place."""
    data = load(root, task)
    parts = [data.splits[name] for name in ("train", "validation")]
    columns = ([getattr(part, field.name) for part in parts] for field in dataclasses.fields(store.Split))
    joined = store.Split(*(None if column[0] is None else np.concatenate(column) for column in columns))
    test = data.splits["test"]
    return dataclasses.replace(data, key=f"{data.key}-all", splits={"train": joined, "validation": test, "test": test})


RULES = {
    "schedule": scheduled(from_the_peak),
    "weights": mock.patch.object(Recipe, "leaves", cut),
    "unclamped": mock.patch("ptd.layers.layer.STABILITY_MARGIN", -math.inf),
    "modes": mock.patch.multiple(Recipe, description=doubled, leaves=with_all_modes),
    "rising": scheduled(rising),
    "padding": mock.patch("ptd_torch.training.Program", Unmasked),
    "reviews": mock.patch.object(store, "load", with_all_reviews),
}


def renamed(found: Recipe, rules: list[str]) -> Recipe:
    """The recipe under a name that says its rules, so that no checkpoint of another goes on as this."""
    return dataclasses.replace(found, name="-".join([found.name, "original", *rules]))


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
    best, last, test = (100 * share for share in (p.best["validation"], p.curve[-1]["validation"], p.test))
    print(f"{name}: validation {best:.2f} % at epoch {p.best['epoch']}, {last:.2f} % at last, test {test:.2f} %")
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
    parser.add_argument("--rules", nargs="+", choices=RULES, required=True)
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
