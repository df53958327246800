"""mlx.nn modules: thin owners of the leaves, which call the pure functions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from ptd.arrays import Array
from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import STATISTICS, SequenceModel, Training
from ptd.module import ModuleMethods

from .dropout import dropped


class Leaves(nn.Module):
    """Named leaves as attributes, dotted names as submodules and lists: Lambda_re, blocks[0].layer.Lambda_re, ..."""

    def __init__(self, tree: dict[str, Any]):
        super().__init__()
        for name, value in tree.items():
            setattr(self, name, _as_modules(value))


class Module(Leaves, ModuleMethods):
    """A layer or model with its parameters; calls, steps and exchanges leaves as the contract says.

    Batch-norm statistics are frozen, as those of nn.BatchNorm: they are no trainable parameters.
    """

    def __init__(self, backend: Backend, description: Layer | SequenceModel, leaves: dict[str, Array]):
        super().__init__(tree_unflatten(list(leaves.items())))
        self.backend, self.description = backend, description
        self.freeze(keys=list(STATISTICS))

    def __call__(self, u: Array, **call: Any) -> Any:
        """The output on whole sequences; arguments as Layer.apply or SequenceModel.apply."""
        return self.run(u, Training(dropped) if self.training else None, **call)

    def keep(self, statistics: dict[str, Array]) -> None:
        if statistics:
            self.update(tree_unflatten([(name, mx.stop_gradient(value)) for name, value in statistics.items()]))

    def unfreeze(self, **options: Any) -> Module:
        """As that of any module, but for batch-norm statistics."""
        super().unfreeze(**options)
        return self.freeze(keys=list(STATISTICS))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description!r})"

    def arrays(self) -> dict[str, Array]:
        """The leaves by name."""
        return dict(tree_flatten(self.parameters()))


def _as_modules(value: Any) -> Any:
    if isinstance(value, dict):
        return Leaves(value)
    return [_as_modules(item) for item in value] if isinstance(value, list) else value
