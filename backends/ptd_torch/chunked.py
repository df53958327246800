"""S5's chunked form for training as one operator, whose products add up in place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptd.arrays import Array, as_planes
from ptd.chunks import ChunkSystem

from .derivatives import refuse_second
from .from_rest import drive_gradient, states_from_rest
from .scan import kernel_path

#: Up to this many outputs, by dtype, a sum of two products is one kernel of ours, that writes once; above, the
#: library's products are faster by more than the two passes that adding up in place takes (benchmarks/notes.md).
NARROW = {torch.float32: 256, torch.bfloat16: 128}


def mixing_chunks(u: Tensor, system: ChunkSystem, *, tiled: bool = True) -> Array:
    """See ptd.kernels.Kernels.mixing_chunks; tiled runs the recurrence by ptd_torch.triton.states where it can."""
    *batch, n, K = u.shape
    # Narrowed here, where a compiler sees it: within the operator each weight would be a pass of its own.
    weights = (v.to(u.dtype) for v in (system.into, system.out, system.direct))
    y, _ = chunked(u.reshape(math.prod(batch), n, K), as_planes(system.decay), *weights, tiled)
    return y.view(*batch, n, K)


@torch.library.custom_op("ptd::chunked", mutates_args=())
def chunked(u: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor, tiled: bool) -> tuple[Tensor, Tensor]:
    """The outputs of chunks and the states that enter them; see ptd.chunks.

    Args:
        u: (R, n, K), K = T H samples of a chunk side by side.
        a: (2, M), the decay of a chunk.
        into, out, direct: (K, D 2 M), (D 2 M, K) and (K, K), in the dtype of u.
        tiled: whether the recurrence runs tile by tile.

    Returns:
        y (R, n, K) and, for the gradient, the states (R, n, D, 2, M).
    """
    (R, n, K), (width, M) = u.shape, (into.shape[-1], a.shape[-1])
    rows = u.reshape(R * n, K)
    drive = (rows @ inner_last(into)).view(R, n, width // (2 * M), 2, M)
    states = states_from_rest(a, drive, drive.shape[2], tiled=tiled, exclusive=True)
    y = sum_of_products(rows, direct.t(), states.view(R * n, width), out.t())
    return y.view(R, n, K), states


@chunked.register_fake
def _(u: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor, tiled: bool) -> tuple[Tensor, Tensor]:
    R, n, _ = u.shape
    M = a.shape[-1]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    return y, u.new_empty(R, n, into.shape[-1] // (2 * M), 2, M)


@torch.library.custom_op("ptd::chunked_adjoint", mutates_args=())
def chunked_adjoint(
    u: Tensor, states: Tensor, dy: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor, tiled: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of chunked by its arguments."""
    (R, n, K), width = u.shape, into.shape[-1]
    rows, dy = u.reshape(R * n, K), dy.reshape(R * n, K)
    entering = (dy @ out.t()).view(states.shape)
    drive, grad_a = drive_gradient(a, entering, states, tiled=tiled, exclusive=True)
    drive, states = (v.view(R * n, width) for v in (drive, states))
    du = sum_of_products(dy, direct, drive, into)
    return du.view(u.shape), grad_a, rows.t() @ drive, states.t() @ dy, rows.t() @ dy


@chunked_adjoint.register_fake
def _(
    u: Tensor, states: Tensor, dy: Tensor, a: Tensor, into: Tensor, out: Tensor, direct: Tensor, tiled: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    return du, *(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (a, into, out, direct))


def _setup_context(ctx: Any, inputs: Any, output: tuple) -> None:
    *inputs, ctx.tiled = inputs
    ctx.save_for_backward(inputs[0], output[1], *inputs[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple:
    if dy is None:
        return (None,) * 6
    u, states, *rest = ctx.saved_tensors
    return *chunked_adjoint(u, states, dy.to(u.dtype), *rest, ctx.tiled), None


chunked.register_autograd(_backward, setup_context=_setup_context)
chunked_adjoint.register_autograd(refuse_second("form='chunked' on a GPU"))


def sum_of_products(u: Tensor, weight: Tensor, v: Tensor, other: Tensor) -> Tensor:
    """u weight^T + v other^T of rows u (R, K) and v (R, J), in their dtype."""
    weight, other = weight.to(u.dtype), other.to(v.dtype)
    if kernel_path(u.device) != "torch" and len(weight) <= NARROW.get(u.dtype, 0) and len(weight) % 64 == 0:
        from .triton import products

        # Rows may come expanded, as the gradient of a sum does, or cut from wider ones.
        return products.sum_of_products(*(x.contiguous() for x in (u, weight, v, other)))
    return (u @ inner_last(weight.t())).addmm_(v, inner_last(other.t()))


def inner_last(weight: Tensor) -> Tensor:
    """A weight (K, N) with its K numbers side by side in memory, as the GPU's TF32 products want their factors.

    They ran at 320 Tflop/s so, at 217 the other way (H200, benchmarks/notes.md). Products of narrower ones take both.
    """
    return weight.t().contiguous().t() if weight.dtype == torch.float32 else weight
