"""mlx.nn modules: thin owners of the leaves, which call the pure functions."""

from __future__ import annotations

from typing import Any

from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from ptd.arrays import Array
from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import SequenceModel, is_statistic
from ptd.module import ModuleMethods


class Leaves(nn.Module):
    """Named leaves as attributes, dotted names as submodules and lists: Lambda_re, blocks[0].layer.Lambda_re, ...

    Batch-norm statistics are frozen: they are no trainable parameters.
    """

    def __init__(self, tree: dict[str, Any]):
        super().__init__()
        for name, value in tree.items():
            setattr(self, name, _as_modules(value))
        self.freeze(recurse=False, keys=[name for name in tree if is_statistic(f"norm.{name}")])


class Module(Leaves, ModuleMethods):
    """A layer or model with its parameters; calls, steps and exchanges leaves as the contract says."""

    def __init__(self, backend: Backend, description: Layer | SequenceModel, leaves: dict[str, Array]):
        super().__init__(tree_unflatten(list(leaves.items())))
        self.backend, self.description = backend, description

    __call__ = ModuleMethods.run

    def arrays(self) -> dict[str, Array]:
        """The leaves by name."""
        return dict(tree_flatten(self.parameters()))


def _as_modules(value: Any) -> Any:
    if isinstance(value, dict):
        return Leaves(value)
    return [_as_modules(item) for item in value] if isinstance(value, list) else value
