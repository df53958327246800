"""Flax NNX modules: thin owners of the leaves, which call the pure functions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from ptd.arrays import Array
from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import SequenceModel, is_statistic


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


class Module(Leaves):
    """A layer or model with its parameters; calls, steps and exchanges leaves as the contract says."""

    def __init__(self, backend: Backend, description: Layer | SequenceModel, leaves: dict[str, Array]):
        super().__init__(leaves)
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
        dtype = next(iter(self._arrays().values())).dtype
        if isinstance(self.description, Layer):
            return jnp.zeros(self.description.state_shape(batch), dtype)
        return [jnp.zeros(shape, dtype) for shape in self.description.state_shapes(batch)]

    def leaves(self) -> dict[str, NDArray]:
        """The parameters by name, on the host."""
        return {name: np.asarray(value) for name, value in self._arrays().items()}

    def _arrays(self) -> dict[str, Array]:
        flat = nnx.to_flat_state(nnx.state(self))
        return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def _by_head(leaves: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """The leaves grouped by the part of their name before the first dot, keyed by the rest."""
    groups: dict[str, dict[str, Array]] = {}
    for name, value in leaves.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    return groups
