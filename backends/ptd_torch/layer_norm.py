"""Layer norm as one torch operator, which a layer may read with features first, on Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptd.model import NORM_EPSILON


@torch.library.custom_op("ptd::layer_normalized", mutates_args=())
def layer_normalized(x: Tensor, scale: Tensor, bias: Tensor, features_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over features; see ptd.model.

    A block reads what is normed twice, in its layer and in its sum. Two outputs are two gradients, which one pass adds
    and takes back through the norm; and that of a layer with a system per feature need not be turned.

    Args:
        x: (..., L, H), float32 or bfloat16.
        scale, bias: float32 (H,).
        features_first: whether the second output is wanted.

    Returns:
        y (..., L, H); the same as (H, ..., L) in memory, of no entries unless wanted, which 32 bits must count; and for
        the gradient mean and 1/deviation of each row, float32 (2, rows).
    """
    from .triton import layer_norm as kernels

    x, scale, bias = x.contiguous(), scale.contiguous(), bias.contiguous()
    return kernels.forward(x, scale, bias, NORM_EPSILON, features_first)


@layer_normalized.register_fake
def _(x: Tensor, scale: Tensor, bias: Tensor, features_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    turned = x.new_empty((x.shape[-1], *x.shape[:-1]) if features_first else 0)
    return x.new_empty(x.shape), turned, scale.new_empty((2, x.numel() // x.shape[-1]))


@torch.library.custom_op("ptd::layer_norm_adjoint", mutates_args=())
def layer_norm_adjoint(
    dy: Tensor | None, dturned: Tensor | None, x: Tensor, scale: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of layer_normalized by x, and those by scale and bias as (2, H)."""
    from .triton import layer_norm as kernels

    dy, dturned, x = (None if v is None else v.contiguous() for v in (dy, dturned, x))
    return kernels.backward(dy, dturned, x, scale.contiguous(), statistics)


@layer_norm_adjoint.register_fake
def _(
    dy: Tensor | None, dturned: Tensor | None, x: Tensor, scale: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), scale.new_empty((2, *scale.shape))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, scale, _, ctx.features_first = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(x, scale, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dturned: Tensor | None, _: Any) -> tuple:
    dturned = dturned if ctx.features_first else None
    if dy is None and dturned is None:
        return None, None, None, None
    x, *rest = ctx.saved_tensors
    dy, dturned = (None if v is None else v.to(x.dtype) for v in (dy, dturned))
    dx, (dscale, dbias) = layer_norm_adjoint(dy, dturned, x, *rest)
    return dx, dscale, dbias, None


layer_normalized.register_autograd(_backward, setup_context=_setup_context)
