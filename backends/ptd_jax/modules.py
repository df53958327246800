"""Flax NNX modules: thin owners of the leaves, which call the pure functions."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from ptd import checks
from ptd.arrays import Array
from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import SequenceModel, Training, is_statistic
from ptd.module import ModuleMethods

from .dropout import dropout


class Leaves(nnx.Module):
    """Named leaves as attributes, dotted names as submodules and lists: Lambda_re, blocks[0].layer.Lambda_re, ...

    Trained leaves are nnx.Param, batch-norm statistics nnx.BatchStat.
    """

    def __init__(self, leaves: dict[str, Array]):
        for head, members in _by_head(leaves).items():
            if "" in members:
                kind = nnx.BatchStat if is_statistic(f"norm.{head}") else nnx.Param
                setattr(self, head, kind(members[""]))
            elif all(name[0].isdigit() for name in members):
                items = _by_head(members)
                setattr(self, head, nnx.List([Leaves(items[key]) for key in sorted(items, key=int)]))
            else:
                setattr(self, head, Leaves(members))


class Module(Leaves, ModuleMethods):
    """A layer or model with its parameters; calls, steps and exchanges leaves as the contract says.

    Attributes:
        deterministic: no dropout; as nnx.Dropout's.
        use_running_average: norm by statistics and keep them; as nnx.BatchNorm's.
        rngs: the stream that dropout draws from, or None.
    """

    def __init__(
        self, backend: Backend, description: Layer | SequenceModel, leaves: dict[str, Array], rngs: Any = None
    ):
        super().__init__(leaves)
        self.backend, self.description = backend, description
        self.deterministic = self.use_running_average = False
        self.rngs = nnx.data(None if rngs is None else _stream(rngs).fork())

    def __call__(self, u: Array, *, rngs: Any = None, **call: Any) -> Any:
        """The output on whole sequences; arguments as Layer.apply or SequenceModel.apply.

        Args:
            u: the input.
            rngs: in place of the module's own: an nnx.Rngs, an nnx.RngStream or a key.
            call: all else.

        Raises:
            ValueError: dropout has nothing to draw from, or would act beside statistics that stay.
        """
        return self.run(u, None if "training" in call else self._training(rngs), **call)

    def set_view(self, deterministic: bool | None = None, use_running_average: bool | None = None) -> None:
        """Set attributes for nnx.view; train() and eval() set both."""
        if deterministic is not None:
            self.deterministic = deterministic
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def keep(self, statistics: dict[str, Array]) -> None:
        for name, value in statistics.items():
            self._variable(name).set_value(jax.lax.stop_gradient(value))

    def arrays(self) -> dict[str, Array]:
        """The leaves by name."""
        return {name: self._variable(name).get_value() for name in self.description.shapes()}

    def _training(self, rngs: Any) -> Training | None:
        """What a pass in the module's mode adds, None for nothing."""
        model = self.description
        if isinstance(model, Layer):
            return None
        drops = model.dropout > 0 and not self.deterministic
        moves = model.norm == "batch" and not self.use_running_average
        if drops and model.norm == "batch" and not moves:
            remedy = "train() and eval() set both"
            raise checks.fail("use_running_average", "False where dropout acts beside norm='batch'", True, remedy)
        if not (drops or moves):
            return None
        return Training(dropout(_bits(self.rngs if rngs is None else rngs)) if drops else lambda x, *_: x)

    def _variable(self, name: str) -> nnx.Variable:
        at: Any = self
        for part in name.split("."):
            at = at[int(part)] if part.isdigit() else getattr(at, part)
        return at


def _stream(rngs: Any) -> nnx.RngStream:
    """The stream for dropout of what nnx.Dropout takes."""
    if isinstance(rngs, nnx.Rngs):
        return rngs["dropout"]
    remedy = "pass rngs=nnx.Rngs(0) to backend.module or to the call, or call eval() first"
    checks.instance("rngs", rngs, nnx.RngStream, "an nnx.Rngs or nnx.RngStream for dropout in training mode", remedy)
    return rngs


def _bits(rngs: Any) -> Array:
    """The key of a pass, as dropout takes it."""
    return jax.random.bits(rngs if isinstance(rngs, jax.Array) else _stream(rngs)())


def _by_head(leaves: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """The leaves grouped by the part of their name before the first dot, keyed by the rest."""
    groups: dict[str, dict[str, Array]] = {}
    for name, value in leaves.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    return groups
