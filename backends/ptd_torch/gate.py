"""The gated sum that ends a block, with the moments of its output, as one torch operator, on Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("ptd::gated_sum", mutates_args=())
def gated_sum(
    keep: Tensor | None, z: Tensor, bias: Tensor, x: Tensor, key: Tensor | None, lengths: Tensor | None,
    rate: float, tied: bool, moments: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x + drop(keep sigmoid(z + bias)), and its moments over batch and valid time.

    Args:
        keep: (..., L, H), like x; None where it is the first half of z + bias.
        z: (..., L, H), or (..., L, 2 H) with keep.
        bias: float32, as wide as z.
        x: (..., L, H), float32 or bfloat16.
        key: of the dropout, ptd_torch.dropout.Dropout.key; None for no dropout.
        lengths: integer (...), valid lengths, for the moments; or None.
        rate, tied: of the dropout; tied over time or not.
        moments: whether these are wanted; else they are not set.

    Returns:
        out (..., L, H), and mean and variance (2, H), float32. Nothing differentiates through the moments:
        ptd_torch.norm gives them their gradient where they are used.
    """
    from .triton import gate as kernels

    keep, z, bias, x, lengths = (None if v is None else v.contiguous() for v in (keep, z, bias, x, lengths))
    return kernels.forward(keep, z, bias, x, key, lengths, rate, tied, moments)


@gated_sum.register_fake
def _(
    keep: Tensor | None, z: Tensor, bias: Tensor, x: Tensor, key: Tensor | None, lengths: Tensor | None,
    rate: float, tied: bool, moments: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), bias.new_empty((2, x.shape[-1]))


@torch.library.custom_op("ptd::gated_sum_adjoint", mutates_args=())
def gated_sum_adjoint(
    dout: Tensor, keep: Tensor | None, z: Tensor, bias: Tensor, key: Tensor | None, rate: float, tied: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gated_sum by keep, of no entries where there is none, by z and by bias; that by x is dout."""
    from .triton import gate as kernels

    dout, keep, z, bias = (None if v is None else v.contiguous() for v in (dout, keep, z, bias))
    return kernels.backward(dout, keep, z, bias, key, rate, tied)


@gated_sum_adjoint.register_fake
def _(
    dout: Tensor, keep: Tensor | None, z: Tensor, bias: Tensor, key: Tensor | None, rate: float, tied: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(0 if keep is None else keep.shape), z.new_empty(z.shape), bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    keep, z, bias, _, key, _, ctx.rate, ctx.tied, _ = inputs
    ctx.save_for_backward(keep, z, bias, key)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, _: Any) -> tuple:
    if dout is None:
        return (None,) * 9
    keep, z, bias, key = ctx.saved_tensors
    dkeep, dz, dbias = gated_sum_adjoint(dout.to(z.dtype), keep, z, bias, key, ctx.rate, ctx.tied)
    return None if keep is None else dkeep, dz, dbias, dout, None, None, None, None, None


gated_sum.register_autograd(_backward, setup_context=_setup_context)
