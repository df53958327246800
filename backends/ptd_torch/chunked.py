"""S5's chunked form for training: as one operator whose products add up in place, or states of chunks of one sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptd.arrays import Array, as_planes
from ptd.chunks import ChunkSystem

from .scan import kernel_path, walk

#: Up to this many outputs, by dtype, a sum of two products is one kernel of ours, that writes once; above, the
#: library's products are faster by more than the two passes that adding up in place takes (benchmarks/notes.md).
NARROW = {torch.float32: 256, torch.bfloat16: 128}


def mixing_chunks(u: Tensor, system: ChunkSystem) -> Array:
    """See ptd.kernels.Kernels.mixing_chunks."""
    *batch, n, K = u.shape
    # Narrowed here, where a compiler sees it: within the operator each weight would be a pass of its own.
    weights = (v.to(u.dtype) for v in (system.into, system.out, system.direct))
    y, _ = chunked(u.reshape(math.prod(batch), n, K), as_planes(system.decay), *weights)
    return y.view(*batch, n, K)


@torch.library.custom_op("ptd::chunked", mutates_args=())
def chunked(u: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of chunks and the states that enter them; see ptd.chunks.

    Args:
        u: (R, n, K), K = T H samples of a chunk side by side.
        a: (2, M), the decay of a chunk.
        into, out, direct: (K, D 2 M), (D 2 M, K) and (K, K), in the dtype of u.

    Returns:
        y (R, n, K) and, for the gradient, the states (R, n, D, 2, M).
    """
    (R, n, K), (width, M) = u.shape, (into.shape[-1], a.shape[-1])
    rows = u.reshape(R * n, K)
    drive = (rows @ into).view(R, n, width // (2 * M), 2, M)
    states, _, _ = walk(a, drive, None, exclusive=True)
    y = sum_of_products(rows, direct.t(), states.view(R * n, width), out.t())
    return y.view(R, n, K), states


@chunked.register_fake
def _(u: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor) -> tuple[Tensor, Tensor]:
    R, n, _ = u.shape
    M = a.shape[-1]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    return y, u.new_empty(R, n, into.shape[-1] // (2 * M), 2, M)


@torch.library.custom_op("ptd::chunked_adjoint", mutates_args=())
def chunked_adjoint(
    u: Tensor, states: Tensor, dy: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of chunked by its arguments."""
    (R, n, K), width = u.shape, into.shape[-1]
    rows, dy = u.reshape(R * n, K), dy.reshape(R * n, K)
    entering = (dy @ out.t()).view(states.shape)
    drive, _, grad_a = walk(a, entering, None, exclusive=True, before=states)
    drive, states = (v.view(R * n, width) for v in (drive, states))
    du = sum_of_products(dy, direct, drive, into)
    grads = (rows.t() @ drive, states.t() @ dy, rows.t() @ dy)
    return du.view(u.shape), grad_a.sum((0, 1)), *grads


@chunked_adjoint.register_fake
def _(
    u: Tensor, states: Tensor, dy: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    return du, *(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (a, into, out, direct))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(inputs[0], output[1], *inputs[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple:
    if dy is None:
        return (None,) * 5
    u, states, *rest = ctx.saved_tensors
    return chunked_adjoint(u, states, dy.to(u.dtype), *rest)


chunked.register_autograd(_backward, setup_context=_setup_context)


def both_ways(Lambda_bar: Array, drive: Tensor, directions: int) -> Tensor:
    """See ptd.kernels.Kernels.both_ways."""
    *batch, L, _, M = drive.shape
    states = states_both_ways(as_planes(Lambda_bar), drive.reshape(math.prod(batch), L, 2, M), directions)
    return states.view(*batch, L, directions, 2, M)


@torch.library.custom_op("ptd::states_both_ways", mutates_args=())
def states_both_ways(a: Tensor, drive: Tensor, directions: int) -> Tensor:
    """The states (R, n, D, 2, M) after each sample, from rest, of drive (R, n, 2, M) with coefficients a (2, M)."""
    drive = drive[:, :, None].expand(-1, -1, directions, -1, -1)
    return walk(a, drive, None, exclusive=False)[0]


@states_both_ways.register_fake
def _(a: Tensor, drive: Tensor, directions: int) -> Tensor:
    R, n, _, M = drive.shape
    return drive.new_empty(R, n, directions, 2, M)


@torch.library.custom_op("ptd::states_both_ways_adjoint", mutates_args=())
def states_both_ways_adjoint(a: Tensor, states: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of states_both_ways by a and drive."""
    drive, _, grad_a = walk(a, grad.to(states.dtype), None, exclusive=False, before=states)
    return grad_a.sum((0, 1)), drive.sum(2)


@states_both_ways_adjoint.register_fake
def _(a: Tensor, states: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    R, n, _, _, M = states.shape
    return torch.empty_like(a), states.new_empty(R, n, 2, M)


def _keep_states(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _from_states(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *states_both_ways_adjoint(*ctx.saved_tensors, grad), None


states_both_ways.register_autograd(_from_states, setup_context=_keep_states)


def sum_of_products(u: Tensor, weight: Tensor, v: Tensor, other: Tensor) -> Tensor:
    """u weight^T + v other^T of rows u (R, K) and v (R, J), in their dtype."""
    weight, other = weight.to(u.dtype), other.to(v.dtype)
    if kernel_path(u.device) != "torch" and len(weight) <= NARROW.get(u.dtype, 0) and len(weight) % 64 == 0:
        from . import triton_products

        # Rows may come expanded, as the gradient of a sum does, or cut from wider ones.
        return triton_products.sum_of_products(*(x.contiguous() for x in (u, weight, v, other)))
    return (u @ weight.t()).addmm_(v, other.t())
