"""AdamW by groups of leaves on a warm-up and cosine schedule, in place and on the device alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ptd.model import is_statistic
from ptd.optimization import Optimizer


class AdamW:
    """What an optimizer does to leaves. All it changes are the trained leaves, moments, squares and steps, in place.

    Args:
        optimizer: the rule.
        leaves: all leaves of a model, by name; those that train come to ask for gradients.
    """

    def __init__(self, optimizer: Optimizer, leaves: Mapping[str, Tensor]):
        self._optimizer, self.groups = optimizer, _groups(optimizer, leaves)
        self.trained = {name: leaves[name] for name in itertools.chain.from_iterable(self.groups.values())}
        self.moments = {name: torch.zeros_like(leaf) for name, leaf in self.trained.items()}
        self.squares = {name: torch.zeros_like(leaf) for name, leaf in self.trained.items()}
        self.steps = torch.zeros((), dtype=torch.int64, device=next(iter(leaves.values())).device)
        for leaf in self.trained.values():
            leaf.requires_grad_()

    def rates(self, steps: Tensor) -> list[Tensor]:
        """The rate of each group after so many steps: linear warm-up, then half a cosine to 0."""
        warm, total = self._optimizer.warmup_steps, self._optimizer.total_steps
        step = steps.to(torch.float32)
        falling = 0.5 * (1 + torch.cos(math.pi * ((step - warm) / (total - warm)).clamp(0, 1)))
        share = torch.where(step < warm, step / max(warm, 1), falling)
        return [share * group.lr for group in self.groups]

    def update(self, grads: Mapping[str, Tensor], rates: list[Tensor]) -> None:
        """One step from gradients that are contiguous, at the rate of each group."""
        self.steps += 1
        done = self.steps.to(torch.float32)
        for (group, names), rate in zip(self.groups.items(), rates, strict=True):
            sources = (self.trained, grads, self.moments, self.squares)
            # The update reads the count of each leaf, and does not write it: one serves all.
            torch._fused_adamw_(
                *([source[name] for name in names] for source in sources), [], [done] * len(names),
                lr=rate, beta1=0.9, beta2=0.999, weight_decay=group.weight_decay, eps=1e-8,
                amsgrad=False, maximize=False,
            )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """What a step changes beside the leaves, by name."""
        parts = {"moments": self.moments, "squares": self.squares}
        named = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        return named | {"steps": self.steps}


def _groups(optimizer: Optimizer, leaves: Mapping[str, Tensor]) -> dict[Any, list[str]]:
    """Names of the trained leaves by their group."""
    groups: dict[Any, list[str]] = {}
    for name in leaves:
        group = optimizer.group(name)
        if not is_statistic(name) and group.lr > 0:
            groups.setdefault(group, []).append(name)
    return groups
