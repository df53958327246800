"""The sums of S4's generating function as a torch operator with its gradient, on Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptd import convolution
from ptd.arrays import Array, as_complex, imag, real, scale

from .vandermonde import applies, refuse_second


@torch.library.custom_op("ptd::cauchy", mutates_args=())
def sums_over_poles(numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> Tensor:
    """Y = i s A - c B with pairs, else A + i B, where A = sum_n alpha_n/D_n and B = sum_n beta_n/D_n.

    D is (c^2 |z|^2 - 4 s^2 - 4i s c Re z)/|z| with pairs, else 2i s - c z; see ptd_torch.triton_cauchy.

    Args:
        numerators: float32 (2, Q, H, N), alpha and beta.
        poles: float32 (2, H, N), |z| and 4 Re z/|z| with pairs, else Re z and Im z.
        circle: float32 (2, F), s and c; it has no gradient.
        pairs: whether each pole stands for itself and its conjugate.

    Returns:
        Y, float32 planes (2, Q, H, F).
    """
    from . import triton_cauchy as kernels

    return kernels.sums(numerators.contiguous(), poles.contiguous(), circle.contiguous(), pairs)


@sums_over_poles.register_fake
def _(numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> Tensor:
    return numerators.new_empty((*numerators.shape[:3], circle.shape[1]))


@torch.library.custom_op("ptd::cauchy_adjoint", mutates_args=())
def adjoint(grad: Tensor, numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """The gradients of sums_over_poles by numerators and poles."""
    from . import triton_cauchy as kernels

    return kernels.gradients(*(x.contiguous() for x in (grad, numerators, poles, circle)), pairs)


@adjoint.register_fake
def _(grad: Tensor, numerators: Tensor, poles: Tensor, circle: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    return numerators.new_empty(numerators.shape), poles.new_empty(poles.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.pairs = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *adjoint(grad, *ctx.saved_tensors, ctx.pairs), None, None


sums_over_poles.register_autograd(_backward, setup_context=_setup_context)
adjoint.register_autograd(refuse_second)


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
    if not applies(step):
        return convolution.resolvent_sums(numerators, Lambda, step, sine, cosine, conj_sym)
    z = scale(Lambda, step)
    H, N = z.shape
    shapes = [torch.broadcast_shapes(v.shape, z.shape) for v in numerators]
    rows = [
        [part.expand(shape).reshape(-1, H, N) for part in (real(v), imag(v))]
        for v, shape in zip(numerators, shapes, strict=True)
    ]
    re, im = (torch.cat(parts) for parts in zip(*rows, strict=True))
    x, y = real(z), imag(z)
    if conj_sym:
        size = torch.sqrt(x * x + y * y)
        poles = torch.stack([size, 4.0 * x / size])
        coefficients = torch.stack([4.0 * step * re / size, 2.0 * step * (re * x + im * y) / size])
    else:
        poles, coefficients = torch.stack([x, y]), torch.stack([step * re, step * im])
    Y = sums_over_poles(coefficients, poles, torch.stack([sine, cosine]), conj_sym)
    counts = [math.prod(shape[:-2]) for shape in shapes]
    found = zip(*(part.split(counts) for part in Y.unbind()), shapes, strict=True)
    return [as_complex(*(part.view(*shape[:-1], -1) for part in (re, im))) for re, im, shape in found]
