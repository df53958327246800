"""Which parameter is trained how: the optimiser groups of the S5 line, for any framework's AdamW."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from . import checks
from .model import is_statistic

RULES = ("standard", "BandCdecay", "BfastandCdecay")


@dataclass(frozen=True)
class Group:
    """Peak learning rate and decoupled weight decay of one group of leaves; lr 0 means frozen."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and cosine annealing per step to 0, and two learning rates.

    Lambda trains at ssm_lr without decay, as does log_step unless step_lr is given. B and S4's P: "standard" ssm_lr
    without decay, "BandCdecay" ssm_lr with decay, "BfastandCdecay" lr with decay. Everything else, C too unless C_lr is
    given: lr with decay.

    Attributes:
        lr: peak rate of ordinary leaves, > 0.
        total_steps: steps until the rate is 0.
        ssm_lr: peak rate of state-space leaves, > 0.
        weight_decay: decoupled decay per unit of rate, >= 0.
        warmup_steps: steps of linear warm-up, < total_steps.
        rule: one of "standard", "BandCdecay", "BfastandCdecay".
        global_step_size: train log_step as an ordinary leaf.
        C_lr: peak rate of C, > 0; decay stays.
        step_lr: peak rate of log_step, > 0, without decay; not with global_step_size.
        frozen: leaves kept at their initial value, for example ("Lambda", "B", "log_step"): by name, for both parts and
            in every block, by the name of a part ("Lambda_im") or by a dotted name ("decoder.weight").
    """

    lr: float
    total_steps: int
    ssm_lr: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    rule: str = "standard"
    global_step_size: bool = False
    frozen: tuple[str, ...] = ()
    C_lr: float | None = None
    step_lr: float | None = None

    def __post_init__(self) -> None:
        checks.positive_number("lr", self.lr)
        checks.positive_number("ssm_lr", self.ssm_lr)
        for name in ("C_lr", "step_lr"):
            if getattr(self, name) is not None:
                checks.positive_number(name, getattr(self, name))
        checks.positive_integer("total_steps", self.total_steps)
        checks.choice("rule", self.rule, RULES)
        checks.boolean("global_step_size", self.global_step_size)
        if self.global_step_size and self.step_lr is not None:
            raise checks.fail("step_lr", "None with global_step_size", self.step_lr, "drop one of the two")
        warm_up = f"an integer, 0 <= warmup_steps < total_steps={self.total_steps}"
        checks.number("warmup_steps", self.warmup_steps, 0, self.total_steps, warm_up)
        if self.warmup_steps != int(self.warmup_steps):
            raise checks.fail("warmup_steps", warm_up, self.warmup_steps)
        checks.number("weight_decay", self.weight_decay, 0, math.inf, "a finite number >= 0")
        if isinstance(self.frozen, str):  # "Lambda" would freeze every leaf named by one of its substrings
            raise checks.fail("frozen", "a tuple of leaf names", repr(self.frozen), f"pass ({self.frozen!r},)")

    def schedule(self, step: int) -> float:
        """The share of its peak rate at which a leaf takes a step: linear warm-up, then half a cosine to 0.

        Args:
            step: number of the step, from 0; with a warm-up that one is at rate 0.

        >>> rule = Optimizer(lr=4e-3, total_steps=6, warmup_steps=2)
        >>> [round(rule.schedule(step), 3) for step in range(7)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return 0.5 * (1.0 + math.cos(math.pi * done))

    def groups(self) -> list[Group]:
        """Every group that a leaf of some name may belong to.

        >>> len(Optimizer(lr=4e-3, total_steps=10, weight_decay=0.1, rule="BandCdecay").groups())
        4
        """
        names = ("norm.mean", "Lambda_re", "log_step", "B_re", "C_re", "decoder.weight")
        trained = dataclasses.replace(self, frozen=())  # one name stands for others that are not frozen with it
        return list(dict.fromkeys(trained.group(name) for name in names))

    def group(self, name: str) -> Group:
        """The group of a leaf, by its dotted name.

        >>> Optimizer(lr=4e-3, total_steps=10, weight_decay=0.1).group("blocks.0.layer.B_re")
        Group(lr=0.001, weight_decay=0.0)
        """
        last = name.rpartition(".")[2]
        leaf = last.removesuffix("_re").removesuffix("_im")
        if not {leaf, last, name}.isdisjoint(self.frozen) or is_statistic(name):
            return Group(0.0, 0.0)
        if leaf == "log_step" and not self.global_step_size:
            return Group(self.step_lr or self.ssm_lr, 0.0)
        if leaf == "Lambda":
            return Group(self.ssm_lr, 0.0)
        if leaf in ("B", "P") and self.rule != "BfastandCdecay":
            return Group(self.ssm_lr, self.weight_decay if self.rule == "BandCdecay" else 0.0)
        if self.C_lr is not None and leaf in ("C", "C_reverse"):
            return Group(self.C_lr, self.weight_decay)
        return Group(self.lr, self.weight_decay)
