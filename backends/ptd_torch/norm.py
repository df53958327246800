"""Batch norm from known moments: element-wise passes for the compiler, what they need per feature as operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptd import model, sequences
from ptd.model import NORM_EPSILON

from .ranks import current, over_ranks


@torch.library.custom_op("ptd::column_moments", mutates_args=())
def column_moments(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean and variance (2, H), float32, of x (..., L, H) over batch and valid time; no gradient."""
    from .triton import columns

    return columns.moments(x.contiguous(), None if lengths is None else lengths.contiguous())


@column_moments.register_fake
def _(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x.new_empty((2, x.shape[-1]), dtype=torch.float32)


class Normed(NamedTuple):
    """What batch_normalized takes, kept for one that takes over its gradient."""

    x: Tensor
    scale: Tensor
    bias: Tensor
    moments: Tensor
    lengths: Tensor | None


def batch_normalized(x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor, lengths: Tensor | None) -> Tensor:
    """ptd.model.normalized with moments that are those of x itself, over batch and valid time, and known already.

    y = (x - mean) factor + bias, with factor = scale / sqrt(var + epsilon), is left to the compiler, which joins it
    with what stands beside; nothing differentiates through it. The gradient, which counts that moments depend on x, is
    that of a zero which is added: norm_factor. Far from zero the error is that of the mean, eps |mean| / std.

    Args:
        x: (..., L, H), float32 or bfloat16.
        scale, bias: float32 (H,).
        moments: mean and variance (2, H), float32; no gradient.
        lengths: integer (...), valid lengths, or None.

    Returns:
        (..., L, H) in the dtype of x.
    """
    # Made after the operator, the compiler (torch 2.13) would keep it for the gradient beside x, at twice its size.
    wide = x.detach().to(scale.dtype)
    factor, zero = norm_factor(x, scale, bias, moments, lengths)
    return ((wide - moments[0]) * factor.detach() + bias.detach()).to(x.dtype) + zero


@torch.library.custom_op("ptd::norm_factor", mutates_args=())
def norm_factor(
    x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The factor (H,) of x - mean, which has no gradient, and zeros like x, in one place of memory, which have its."""
    from .triton import norm as kernels

    factor, zero = kernels.prepare(x, scale.contiguous(), moments.contiguous(), NORM_EPSILON)
    return factor, zero.expand(x.shape)


@norm_factor.register_fake
def _(
    x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return scale.new_empty(scale.shape), x.new_empty(1).expand(x.shape)


@torch.library.custom_op("ptd::norm_adjoint", mutates_args=())
def norm_adjoint(dy: Tensor, x: Tensor, scale: Tensor, moments: Tensor, lengths: Tensor | None) -> Tensor:
    """The gradients by scale and bias, and a, b and c of dx = a dy - [valid] (b x + c), as (5, H).

    With x^ = (x - mean) / sqrt(var + epsilon), sums over all rows and n valid ones: the gradients are S = sum dy x^ and
    T = sum dy, and dx = a (dy - [valid] (T + x^ S) / n), a = scale / sqrt(var + epsilon) (Ioffe and Szegedy 2015).
    """
    from .triton import norm as kernels

    dy, x, scale, moments, lengths = (None if v is None else v.contiguous() for v in (dy, x, scale, moments, lengths))
    return over_whole_batch(kernels.adjoint(dy, x, scale, moments, lengths, NORM_EPSILON), x, lengths)


@norm_adjoint.register_fake
def _(dy: Tensor, x: Tensor, scale: Tensor, moments: Tensor, lengths: Tensor | None) -> Tensor:
    return scale.new_empty((5, len(scale)))


def over_whole_batch(found: Tensor, x: Tensor, lengths: Tensor | None) -> Tensor:
    """What norm_adjoint finds of one process's rows with b and c, means over valid rows, of all processes'."""
    if (ranks := current()).size == 1:
        return found
    n = found.new_full((), x.numel() // x.shape[-1]) if lengths is None else lengths.sum().to(found.dtype)
    sums = ranks.total(torch.cat([(found[3:5] * n).reshape(-1), n[None]]))
    found[3:5] = (sums[:-1] / sums[-1].clamp(min=1)).view(2, -1)
    return found


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, scale, _, moments, lengths = inputs
    ctx.save_for_backward(x, scale, moments, lengths)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, _: Any, dy: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 5
    x, scale, moments, lengths = ctx.saved_tensors
    return *gradients(dy, x, norm_adjoint(dy, x, scale, moments, lengths), lengths), None, None


def gradients(dy: Tensor, x: Tensor, found: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Those by x, scale and bias, from what norm_adjoint finds."""
    dscale, dbias, a, b, c = found
    shared = sequences.mask(x.to(found.dtype) * b + c, lengths)
    return (dy.to(found.dtype) * a - shared).to(x.dtype), dscale, dbias


def batch_norm_over_ranks(
    x: Tensor, lengths: Tensor | None, scale: Tensor, bias: Tensor, near: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ptd.model.batch_norm as array code, with the moments of the rows of all processes."""

    def total(sums: tuple) -> tuple:
        along, squares, count = sums
        count = torch.as_tensor(count, dtype=along.dtype, device=along.device)
        H = len(along)
        found = over_ranks(torch.cat([along, squares, count[None]]))
        return found[:H], found[H:-1], found[-1]

    wide = x.to(scale.dtype)
    mean, var = model.moments(wide, lengths, near, total)
    return model.normalized(wide, mean, var, scale, bias, epsilon).to(x.dtype), mean, var


norm_factor.register_autograd(_backward, setup_context=_setup_context)
