"""The end of a block, gelu and gated sum with the product between them, as one torch operator, on Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Fewer elements than these may be read and written with features first: 32 bits count them.
MOST_FIRST = 2**31


@torch.library.custom_op("ptd::block_end", mutates_args=())
def block_end(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, first: Tensor | None, second: Tensor | None,
    lengths: Tensor | None, rate: float, tied: bool, activation: str, moments: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x + drop(keep sigmoid(g weight^T + bias)) with g = drop(gelu(y)); see ptd.model.SequenceModel.finish.

    Args:
        y, x: (..., L, H), of one dtype, float32 or bfloat16; H a multiple of 64. y may lie in memory with features
            first, as ptd_torch.per_feature_chunks leaves it; so does its gradient then.
        weight: (H, H), of that dtype; full_glu's (2 H, H), the rows of keep before those of the gate.
        bias: float32, one for each row of weight.
        first, second: keys of the two dropouts, ptd_torch.dropout.Dropout.key; None for no dropout.
        lengths: integer (...), valid lengths, for the moments; or None.
        rate, tied: of the dropouts; tied over time or not.
        activation: "half_glu1", whose gate keeps g, "half_glu2", which keeps y, or "full_glu", which keeps
            g value^T + its bias.
        moments: whether these are wanted; else they are not set.

    Returns:
        out (..., L, H); its mean and variance over batch and valid time (2, H), float32, through which nothing
        differentiates; and, for the gradient, g (..., L, H) and the product z, as wide as bias.
    """
    from .triton import end as kernels

    x, weight, bias, lengths = (None if v is None else v.contiguous() for v in (x, weight, bias, lengths))
    return kernels.forward(_laid_out(y), x, weight, bias, first, second, lengths, rate, tied, activation, moments)


@block_end.register_fake
def _(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, first: Tensor | None, second: Tensor | None,
    lengths: Tensor | None, rate: float, tied: bool, activation: str, moments: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    z = y.new_empty((*y.shape[:-1], len(bias)))
    return y.new_empty(y.shape), bias.new_empty((2, y.shape[-1])), y.new_empty(y.shape), z


@torch.library.custom_op("ptd::block_end_adjoint", mutates_args=())
def block_end_adjoint(
    dout: Tensor, y: Tensor, g: Tensor, z: Tensor, transposed: Tensor, bias: Tensor, first: Tensor | None,
    second: Tensor | None, rate: float, tied: bool, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of block_end by y, weight and bias, from weight^T in memory; that by x is dout itself."""
    from .triton import end as kernels

    dout, transposed, bias = (v.contiguous() for v in (dout, transposed, bias))
    dy, dz, dbias = kernels.backward(dout, _laid_out(y), z, transposed, bias, first, second, rate, tied, activation)
    return dy, dz.view(-1, len(bias)).t() @ g.view(-1, g.shape[-1]), dbias


@block_end_adjoint.register_fake
def _(
    dout: Tensor, y: Tensor, g: Tensor, z: Tensor, transposed: Tensor, bias: Tensor, first: Tensor | None,
    second: Tensor | None, rate: float, tied: bool, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(_laid_out(y)), z.new_empty(transposed.shape[::-1]), bias.new_empty(bias.shape)


def _laid_out(y: Tensor) -> Tensor:
    """y with features first or last in memory and all else in order; first where 32 bits count its elements."""
    return y if y.movedim(-1, 0).is_contiguous() and y.numel() < MOST_FIRST else y.contiguous()


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    y, _, weight, bias, first, second, _, ctx.rate, ctx.tied, ctx.activation, _ = inputs
    ctx.save_for_backward(y, *output[2:], weight, bias, first, second)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple:
    if dout is None:
        return (None,) * 11
    y, g, z, weight, *rest = ctx.saved_tensors
    # TF32 products read both factors along the inner dimension.
    transposed = weight.t().contiguous()
    call = (ctx.rate, ctx.tied, ctx.activation)
    dy, dweight, dbias = block_end_adjoint(dout.to(z.dtype), y, g, z, transposed, *rest, *call)
    return dy, dout, dweight, dbias, *(None,) * 7


block_end.register_autograd(_backward, setup_context=_setup_context)
