"""Where a learner's arrays lie: on one device, or in a mesh, batches split over its devices and all else whole on each.

XLA adds the sums over devices that follow: of a batch's moments, of the loss, and of gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptd import checks


class Placement(NamedTuple):
    """One device if mesh is None."""

    mesh: Mesh | None = None

    @classmethod
    def over(cls, mesh: Mesh | None) -> Placement:
        """Over all devices of a mesh, its axes automatic whatever they were made.

        Raises:
            ValueError: mesh is no Mesh.
        """
        if mesh is None:
            return cls()
        checks.instance("mesh", mesh, Mesh, "a jax.sharding.Mesh", "make one with jax.make_mesh")
        return cls(Mesh(mesh.devices, mesh.axis_names))

    def whole(self, tree: Any) -> Any:
        """Arrays, of the host or not, on every device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def by_rows(self, tree: Any) -> Any:
        """Under jit: arrays split over the devices along their first axis."""
        return self._constrained(tree, () if self.mesh is None else (self.mesh.axis_names,))

    def joined(self, tree: Any) -> Any:
        """Under jit: arrays whole on every device."""
        return self._constrained(tree, ())

    def _constrained(self, tree: Any, spec: tuple) -> Any:
        if self.mesh is None:
            return tree
        return lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec(*spec)))
