"""Kernels that run row by row, run by each device on the rows that lie there.

XLA does not look into a kernel: where its arguments are sharded it would gather them on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptd.arrays import Array

DOUBLE = ("float64", "complex128")


def by_rows(function: Callable[..., tuple[Array, ...]], axes: str, rows: str) -> Callable[..., tuple[Array, ...]]:
    """function, under jit on several devices each on its own rows; vmap adds axes of rows.

    Differentiate around it, by jax.custom_vjp: what is summed over rows there, XLA sums over devices. It is function
    alone, whose arguments are gathered, in double precision, and inside shard_map over axes that stay automatic.

    Args:
        function: of arrays, to a tuple of arrays, whatever number of rows there are.
        axes: of its arguments and results a letter per axis, as "gm, grnm -> grnm"; one letter is one size, and once in
            an array: for two axes of one size it takes two.
        rows: the letters of axes along which function runs row by row. The arguments are gathered along others.

    >>> import jax.numpy as jnp
    >>> doubled = by_rows(lambda x: (2.0 * x,), "rm -> rm", rows="r")
    >>> [y.tolist() for y in jax.jit(doubled)(jnp.ones((1, 2)))]
    [[[2.0, 2.0]]]
    """
    of_arguments, of_results = (side.replace(" ", "").split(",") for side in axes.split("->"))
    run = custom_partitioning(lambda *arguments: function(*arguments))
    precision = jax.config.jax_default_matmul_precision

    def configured(*arguments: Array) -> tuple[Array, ...]:
        # XLA asks for a device's part in a thread of its own, where contexts that are in force here are not.
        with jax.default_matmul_precision(precision):
            return function(*arguments)

    def partition(mesh: Mesh, arguments: tuple, _: Any) -> tuple:
        over = _mesh_axes(of_arguments, [x.sharding.spec for x in arguments], rows)

        def shardings(each: list[str]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, PartitionSpec(*map(over.get, letters))) for letters in each)

        return mesh, configured, shardings(of_results), shardings(of_arguments)

    # Shardy wants them in the order in which they first come up (jax 0.10).
    whole = tuple(letter for letter in dict.fromkeys("".join(of_arguments + of_results)) if letter not in rows)
    rule = " -> ".join(", ".join(" ".join(letters) for letters in each) for each in (of_arguments, of_results))
    run.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)

    @custom_vmap
    def mappable(*arguments: Array) -> tuple[Array, ...]:
        # In shard_map a device holds its part already; where other axes of the mesh are automatic, partition gets
        # shardings without names. And the thread of its own has no float64 (jax 0.10).
        alone = jax.sharding.get_abstract_mesh().manual_axes or any(x.dtype in DOUBLE for x in arguments)
        return function(*arguments) if alone else run(*arguments)

    @mappable.def_vmap
    def mapped(_: int, is_mapped: list[bool], *arguments: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        new = next(letter for letter in "zyxwvuts" if letter not in axes)
        each = jax.vmap(function, in_axes=[0 if m else None for m in is_mapped])
        wider = ", ".join(new * m + letters for m, letters in zip(is_mapped, of_arguments, strict=True))
        found = by_rows(each, f"{wider} -> {', '.join(new + letters for letters in of_results)}", rows + new)
        return found(*arguments), (True,) * len(of_results)

    return mappable


def _mesh_axes(of_arguments: list[str], specs: list[PartitionSpec], rows: str) -> dict[str, Any]:
    """What each letter of rows is split over: as in the argument with most axes that splits it, no mesh axis twice."""
    over: dict[str, Any] = {}
    taken: set[str] = set()
    for letters, spec in sorted(zip(of_arguments, specs, strict=True), key=lambda argument: -len(argument[0])):
        for letter, names in zip(letters, spec, strict=False):
            own = names if isinstance(names, tuple) else (names,)
            if names is not None and letter in rows and letter not in over and taken.isdisjoint(own):
                over[letter] = names
                taken |= set(own)
    return over
