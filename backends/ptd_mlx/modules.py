"""mlx.nn modules: thin owners of the leaves, which call the pure functions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from ptd.arrays import Array
from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import SequenceModel, is_statistic


class Leaves(nn.Module):
    """Named leaves as attributes, dotted names as submodules and lists: Lambda_re, blocks[0].layer.Lambda_re, ...

    Batch-norm statistics are frozen: they are no trainable parameters.
    """

    def __init__(self, tree: dict[str, Any]):
        super().__init__()
        for name, value in tree.items():
            setattr(self, name, _as_modules(value))
        self.freeze(recurse=False, keys=[name for name in tree if is_statistic(f"norm.{name}")])


class Module(Leaves):
    """A layer or model with its parameters; calls, steps and exchanges leaves as the contract says."""

    def __init__(self, backend: Backend, description: Layer | SequenceModel, leaves: dict[str, Array]):
        super().__init__(tree_unflatten(list(leaves.items())))
        self.backend, self.description = backend, description

    def __call__(self, u: Array, **call: Any) -> Any:
        """The output on whole sequences; arguments as Layer.apply or SequenceModel.apply."""
        apply = self.backend.apply if isinstance(self.description, Layer) else self.backend.apply_model
        return apply(self.description, self._arrays(), u, **call)

    def step(self, u_k: Array, state: Any, **call: Any) -> Any:
        """One sample; arguments as Layer.step or SequenceModel.step."""
        step = self.backend.step if isinstance(self.description, Layer) else type(self.description).step
        return step(self.description, self._arrays(), u_k, state, **call)

    def initial_state(self, batch: tuple[int, ...] = ()) -> Any:
        """A zero state of a layer; of a model, one per block."""
        if isinstance(self.description, Layer):
            return mx.zeros(self.description.state_shape(batch))
        return [mx.zeros(shape) for shape in self.description.state_shapes(batch)]

    def leaves(self) -> dict[str, NDArray]:
        """The parameters by name, on the host."""
        return {name: np.array(value) for name, value in self._arrays().items()}

    def _arrays(self) -> dict[str, Array]:
        return dict(tree_flatten(self.parameters()))


def _as_modules(value: Any) -> Any:
    if isinstance(value, dict):
        return Leaves(value)
    return [_as_modules(item) for item in value] if isinstance(value, list) else value
