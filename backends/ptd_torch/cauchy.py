"""The sums of S4's generating function as a torch operator with its gradient, on Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptd import convolution
from ptd.arrays import Array

from .derivatives import refuse_second
from .vandermonde import applies


@torch.library.custom_op("ptd::cauchy", mutates_args=())
def sums_over_poles(numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> Tensor:
    """ptd.convolution.sums_over_poles in float32; circle has no gradient."""
    from .triton import cauchy as kernels

    return kernels.sums(numerators.contiguous(), poles.contiguous(), circle.contiguous(), pairs)


@sums_over_poles.register_fake
def _(numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> Tensor:
    return numerators.new_empty((*numerators.shape[:3], circle.shape[1]))


@torch.library.custom_op("ptd::cauchy_adjoint", mutates_args=())
def adjoint(grad: Tensor, numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """The gradients of sums_over_poles by numerators and poles."""
    from .triton import cauchy as kernels

    grad, numerators, poles, circle = (x.contiguous() for x in (grad, numerators, poles, circle))
    return kernels.gradients(grad, numerators, poles, circle, pairs)


@adjoint.register_fake
def _(grad: Tensor, numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    return numerators.new_empty(numerators.shape), poles.new_empty(poles.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.pairs = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *adjoint(grad, *ctx.saved_tensors, ctx.pairs), None, None


sums_over_poles.register_autograd(_backward, setup_context=_setup_context)
adjoint.register_autograd(refuse_second("form='convolution' in float32 on a GPU"))


@sums_over_poles.register_vmap
def _(info: Any, dims: tuple, numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> tuple[Tensor, int]:
    """The batch as further features."""
    size = info.batch_size

    def folded(x: Tensor, dim: int | None) -> Tensor:
        x = x[..., None, :, :].expand(*x.shape[:-2], size, -1, -1) if dim is None else x.movedim(dim, -3)
        return x.flatten(-3, -2)

    Y = sums_over_poles(folded(numerators, dims[0]), folded(poles, dims[1]), circle, pairs)
    return Y.unflatten(2, (size, -1)), 2


def resolvent_sums(
    numerators: Sequence[Array], Lambda: Array, step: Tensor, sine: Tensor, cosine: Tensor, conj_sym: bool
) -> list[Array]:
    """ptd.convolution.resolvent_sums."""
    sums = sums_over_poles if applies(step) else convolution.sums_over_poles
    return convolution.resolvent_sums(numerators, Lambda, step, sine, cosine, conj_sym, sums=sums)
