"""Where a learner's arrays lie and its programs run: on one device, or on several that share the rows of a batch.

Several run one device's program, each on its own rows (jax.shard_map), and add what is summed over the batch: moments,
loss and gradients. To XLA's partitioner this is not left: it gathered whole batches for Fourier transforms and broke
off on the gradient of S4D's convolution form (jax 0.10).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptd import checks
from ptd.arrays import Array

#: The mesh axis that the rows of a batch are split over.
ROWS = "rows"


class Placement(NamedTuple):
    """One device if mesh is None, else all of a mesh with the one axis ROWS."""

    mesh: Mesh | None = None

    @classmethod
    def over(cls, mesh: Mesh | None, devices: int = 1) -> Placement:
        """Over all devices of a mesh, whatever its axes, or over the first so many of this process.

        Raises:
            ValueError: mesh is no Mesh, there are fewer devices, or both are given.
        """
        checks.positive_integer("devices", devices)
        if mesh is not None:
            checks.instance("mesh", mesh, Mesh, "a jax.sharding.Mesh", "make one with jax.make_mesh")
            if devices > 1:
                raise checks.fail("devices", "1 with mesh", devices, "a mesh names its devices")
            return cls(Mesh(mesh.devices.ravel(), (ROWS,)))
        found = jax.local_devices()
        if devices > len(found):
            raise checks.fail("devices", f"at most the {len(found)} that jax finds", devices, "pass fewer")
        return cls(Mesh(np.array(found[:devices]), (ROWS,)) if devices > 1 else None)

    def whole(self, tree: Any) -> Any:
        """Arrays, of the host or of any device, on every device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def context(self) -> AbstractContextManager:
        """In which what on_each made is called: a mesh that the caller has set would not be this one."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def on_each(self, function: Callable) -> Callable:
        """function, run by every device: what it takes and returns is whole on each, and the same."""
        if self.mesh is None:
            return function
        whole = PartitionSpec()
        return jax.shard_map(function, mesh=self.mesh, in_specs=whole, out_specs=whole, check_vma=False)


# --- within a function that on_each runs; elsewhere there is one device, and every row is its own -----------------


def devices() -> int:
    """How many share the rows of a batch."""
    return lax.axis_size(ROWS) if ROWS in jax.sharding.get_abstract_mesh().manual_axes else 1


def before(count: int) -> Any:
    """What the devices before this one have together where each has count."""
    return lax.axis_index(ROWS) * count if devices() > 1 else 0


def mine(tree: Any) -> Any:
    """This device's rows of arrays (batch, ...): as many on each, the last row again where they do not suffice."""

    def part(x: Array) -> Array:
        rows = -(-len(x) // devices())
        missing = rows * devices() - len(x)
        filled = jnp.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)], mode="edge") if missing else x
        return lax.dynamic_slice_in_dim(filled, before(rows), rows)

    return jax.tree.map(part, tree) if devices() > 1 else tree


def counts(x: Array, batch: int) -> Array | None:
    """Which of this device's rows x are of the batch and not filled up, flags (rows, 1, ...); None where all are."""
    rows = len(x)
    if rows * devices() == batch:
        return None
    return jnp.expand_dims(before(rows) + jnp.arange(rows) < batch, tuple(range(1, x.ndim)))


def total(tree: Any) -> Any:
    """Sums over the devices."""
    return lax.psum(tree, ROWS) if devices() > 1 else tree


def joined(x: Array, batch: int) -> Array:
    """(batch, ...) from every device's rows."""
    return lax.all_gather(x, ROWS, tiled=True)[:batch] if devices() > 1 else x
