"""Batch norm from known moments: element-wise passes for the compiler, sums over rows as one operator, on Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptd.model import NORM_EPSILON, normalized


@torch.library.custom_op("ptd::column_moments", mutates_args=())
def column_moments(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean and variance (2, H), float32, of x (..., L, H) over batch and valid time; no gradient."""
    from . import triton_columns

    return triton_columns.moments(x.contiguous(), None if lengths is None else lengths.contiguous())


@column_moments.register_fake
def _(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x.new_empty((2, x.shape[-1]), dtype=torch.float32)


@torch.library.custom_op("ptd::norm_sums", mutates_args=())
def norm_sums(dy: Tensor, x: Tensor, moments: Tensor, epsilon: float) -> Tensor:
    """Sums (2, H) over all rows of dy and of dy (x - mean) / sqrt(var + epsilon)."""
    from . import triton_columns

    return triton_columns.norm_sums(dy.contiguous(), x.contiguous(), moments.contiguous(), epsilon)


@norm_sums.register_fake
def _(dy: Tensor, x: Tensor, moments: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(moments)


class BatchNorm(torch.autograd.Function):
    """ptd.model.normalized with moments that are those of x itself, over batch and valid time, and known already.

    Its gradient counts that moments depend on x:
    dx = a (dy - [valid] (sum dy + x^ sum(dy x^)) / n) with x^ the normalised x and a = scale / sqrt(var + epsilon).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor, lengths: Tensor | None) -> Tensor:
        """The normalised x (..., L, H), in its dtype; moments (2, H)."""
        ctx.save_for_backward(x, scale, moments, lengths)
        return normalized(x.to(scale.dtype), moments[0], moments[1], scale, bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        """The gradients by x, scale and bias."""
        (dy,) = grads
        x, scale, moments, lengths = ctx.saved_tensors
        sums = norm_sums(dy, x, moments, NORM_EPSILON)
        count = x.numel() // x.shape[-1] if lengths is None else lengths.sum()
        inverse = torch.rsqrt(moments[1] + NORM_EPSILON)
        shared = (sums[0] + (x.to(scale.dtype) - moments[0]) * (inverse * sums[1])) / count
        if lengths is not None:
            valid = torch.arange(x.shape[-2], device=x.device) < lengths[..., None]
            shared = torch.where(valid[..., None], shared, 0.0)
        dx = (dy.to(scale.dtype) - shared) * (scale * inverse)
        return dx.to(x.dtype), sums[1], sums[0], None, None
