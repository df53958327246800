"""One sequence across several devices: the chunked form with the time axis sharded.

Chunks know of each other by the states that enter them alone, so every device runs its own stretch of time from zero,
the devices exchange the states at the ends of their stretches, D 2 M numbers each, and each adds to the states that
enter its chunks what came in from its neighbours. Sharding the batch needs nothing of this: place u, its first axis
split over automatic axes of a mesh, with a jax.sharding.NamedSharding and call JaxBackend.apply under jit; a learner
takes a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ptd import checks
from ptd.arrays import Array
from ptd.convolution import powers
from ptd.kernels import Kernels
from ptd.layers import Layer
from ptd.layers.diagonal import DiagonalLayer

from .kernels import choice, table


def apply(
    layer: Layer,
    params: Mapping[str, Array],
    u: Array,
    *,
    mesh: Mesh,
    axis: str,
    state: Array | None = None,
    lengths: Array | None = None,
    step_scale: float | None = None,
    return_state: bool = False,
    recurrence: str | None = None,
) -> Any:
    """Layer.apply of a time-invariant diagonal layer with time sharded over one axis of a mesh.

    Other axes of the mesh stay automatic: shard the batch over them under jit as usual. As run= of SequenceModel.apply
    (with functools.partial) it makes a whole model sequence-parallel.

    Args:
        layer: S5, S4D or DSS.
        params: its real leaves, the same on every device of the axis.
        u: real (..., L, H), L a multiple of the axis' size.
        mesh: the devices.
        axis: the name of the mesh axis that time is sharded over.
        state: as for Layer.apply, of a layer that is not bidirectional.
        lengths: as for Layer.apply.
        step_scale: a number, as for Layer.apply.
        return_state: also return the final state, on every device; not with lengths.
        recurrence: as for JaxBackend.

    Returns:
        y, real (..., L, H), sharded as u; with return_state the pair (y, final state).

    Raises:
        ValueError: an argument does not fit.
    """
    platform = jax.default_backend()
    kernels = table(platform, recurrence or choice(platform).recurrence)
    layer.check_call(
        params,
        u,
        state=state,
        lengths=lengths,
        step_scale=step_scale,
        form="chunked",
        activations=kernels.activations,
    )
    if not isinstance(layer, DiagonalLayer):
        raise checks.fail("layer", "a diagonal layer", layer.kind, "run it on one device")
    checks.choice("axis", axis, mesh.axis_names)
    shards, L = mesh.shape[axis], u.shape[-2]
    if L % shards:
        raise checks.fail("u", f"a length divisible by the {shards} devices of mesh axis {axis!r}", L, "pad it")
    if return_state and lengths is not None:
        raise checks.fail("return_state", "False with lengths", True, "shards do not know where others' sequences end")
    stretch = L // shards

    def local(params: Mapping[str, Array], u: Array, state: Array | None, lengths: Array | None) -> Any:
        if lengths is not None:
            lengths = jnp.clip(lengths - lax.axis_index(axis) * stretch, 0, stretch)
        return layer.apply(
            params,
            u,
            state=state,
            lengths=lengths,
            step_scale=step_scale,
            return_state=return_state,
            form="chunked",
            kernels=_across(axis, kernels),
        )

    whole, by_time = PartitionSpec(), PartitionSpec(*[None] * (u.ndim - 2), axis, None)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, by_time, whole, whole),
        out_specs=(by_time, whole) if return_state else by_time,
        axis_names={axis},
        check_vma=False,
    )(dict(params), u, state, None if lengths is None else jnp.asarray(lengths))


def _across(axis: str, kernels: Kernels) -> Kernels:
    """The kernels of one stretch of time."""

    def whole_chunks(layer: Layer, L: int) -> int:
        # A padded chunk would let states decay before they leave for the neighbour.
        return next(T for T in range(kernels.chunk_length(layer, L), 0, -1) if L % T == 0)

    def across(decay: Array, drive: Array, state: Array | None = None, **_: Any) -> tuple[Array, Array]:
        return _carries(kernels.carries, axis, decay, drive, state)

    return kernels.with_carries(across, chunk_length=whole_chunks)


def _carries(carries: Callable, axis: str, decay: Array, drive: Array, state: Array | None) -> tuple[Array, Array]:
    """ptd.chunks.carries where each device holds its stretch of the chunks; final is that of the whole sequence."""
    entering, ends = carries(decay, drive)
    D, n, dtype = drive.shape[-3], drive.shape[-4], ends.dtype
    if decay.ndim > 1:
        H, M = decay.shape
        decay = decay.reshape(H, *(1,) * (drive.ndim - 5), M)
    over_chunks = powers(decay, n + 1)
    ends = lax.all_gather(lax.complex(ends[..., 0, :], ends[..., 1, :]), axis)
    x0 = jnp.zeros_like(ends[0, ..., 0, :])
    first = x0 if state is None else x0 + lax.complex(state[..., 0, :], state[..., 1, :])
    finals, corrections = [], []
    for direction in range(D):
        own = lax.axis_index(axis)
        shards = jnp.flip(ends[..., direction, :], axis=0) if direction else ends[..., direction, :]
        before, final = _before(over_chunks[..., n], shards, x0 if direction else first)
        before = before[len(shards) - 1 - own if direction else own]
        # What came in has decayed by c chunks where it enters chunk c, counted from the end it came in at.
        decayed = jnp.moveaxis(before[..., None] * over_chunks[..., :n], -1, -2)
        corrections.append(jnp.flip(decayed, axis=-2) if direction else decayed)
        finals.append(final)
    added, final = jnp.stack(corrections, axis=-2), jnp.stack(finals, axis=-2)
    added, final = (jnp.stack([x.real, x.imag], axis=-2).astype(dtype) for x in (added, final))
    return (entering.astype(dtype) + added).astype(drive.dtype), final


def _before(decay: Array, ends: Array, state: Array) -> tuple[Array, Array]:
    """The state before each shard, and after the last, from what each adds: ends (shards, ..., M)."""
    before = [state]
    for end in ends:
        before.append(decay * before[-1] + end)
    return jnp.stack(before[:-1]), before[-1]
