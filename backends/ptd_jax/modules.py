"""Flax NNX modules: thin owners of the leaves, which call the pure functions."""

from __future__ import annotations

from flax import nnx

from ptd.arrays import Array
from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import SequenceModel, is_statistic
from ptd.module import ModuleMethods


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
    """A layer or model with its parameters; calls, steps and exchanges leaves as the contract says."""

    def __init__(self, backend: Backend, description: Layer | SequenceModel, leaves: dict[str, Array]):
        super().__init__(leaves)
        self.backend, self.description = backend, description

    __call__ = ModuleMethods.run

    def arrays(self) -> dict[str, Array]:
        """The leaves by name."""
        flat = nnx.to_flat_state(nnx.state(self))
        return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def _by_head(leaves: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """The leaves grouped by the part of their name before the first dot, keyed by the rest."""
    groups: dict[str, dict[str, Array]] = {}
    for name, value in leaves.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    return groups
