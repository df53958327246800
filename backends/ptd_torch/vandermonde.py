"""The kernel of a diagonal system's convolution as a torch operator with its gradient, on Triton."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptd import convolution
from ptd.arrays import Array, as_planes, imag, real

from .derivatives import refuse_second
from .scan import kernel_path
from .transforms import plain_or_vmap


@torch.library.custom_op("ptd::vandermonde", mutates_args=())
def sums_of_powers(weights: Tensor, Lambda_bar: Tensor, L: int) -> Tensor:
    """K_l = Re sum_n weights_n Lambda_bar_n^l for l = 0 ... L-1, in memory linear in K.

    Args:
        weights: float32 planes (R, 2, N).
        Lambda_bar: float32 planes (G, 2, N); row r of weights takes r mod G of them.
        L: length of the kernel, at least 1.

    Returns:
        K, float32 (R, L).
    """
    from .triton import vandermonde as kernels

    return kernels.vandermonde(weights.contiguous(), Lambda_bar.contiguous(), L)


@sums_of_powers.register_fake
def _(weights: Tensor, Lambda_bar: Tensor, L: int) -> Tensor:
    return weights.new_empty((weights.shape[0], L))


@torch.library.custom_op("ptd::vandermonde_adjoint", mutates_args=())
def adjoint(grad: Tensor, weights: Tensor, Lambda_bar: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of sums_of_powers by weights and Lambda_bar: conj(sum_l g_l a^l), conj(w sum_l l g_l a^(l-1))."""
    from .triton import vandermonde as kernels

    sums = kernels.vandermonde_sums(grad.contiguous(), Lambda_bar.contiguous())
    (p_re, p_im), (s_re, s_im) = (part.unbind(1) for part in sums.unbind(1))
    w_re, w_im = weights.unbind(1)
    by_weights = torch.stack([p_re, -p_im], dim=1)
    by_a = torch.stack([w_re * s_re - w_im * s_im, -(w_re * s_im + w_im * s_re)], dim=1)
    return by_weights, by_a.view(-1, *Lambda_bar.shape).sum(0)


@adjoint.register_fake
def _(grad: Tensor, weights: Tensor, Lambda_bar: Tensor) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), Lambda_bar.new_empty(Lambda_bar.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    weights, Lambda_bar, _ = inputs
    ctx.save_for_backward(weights, Lambda_bar)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *adjoint(grad, *ctx.saved_tensors), None


sums_of_powers.register_autograd(_backward, setup_context=_setup_context)
adjoint.register_autograd(refuse_second("form='convolution' in float32 on a GPU"))


@sums_of_powers.register_vmap
def _(info: Any, dims: tuple, weights: Tensor, Lambda_bar: Tensor, L: int) -> tuple[Tensor, int]:
    """The batch as further rows, each with its own coefficients where these have the batch too."""
    size, (by_weights, by_a, _) = info.batch_size, dims
    weights = weights.expand(size, *weights.shape) if by_weights is None else weights.movedim(by_weights, 0)
    R = weights.shape[1]
    if by_a is not None:
        Lambda_bar = Lambda_bar.movedim(by_a, 0)
        G = Lambda_bar.shape[1]
        Lambda_bar = Lambda_bar[:, None].expand(size, R // G, *Lambda_bar.shape[1:]).flatten(0, 2)
    return sums_of_powers(weights.flatten(0, 1), Lambda_bar, L).unflatten(0, (size, R)), 0


def vandermonde(weights: Array, Lambda_bar: Array, L: int) -> Tensor:
    """ptd.convolution.vandermonde."""
    if not applies(real(weights)):
        return convolution.vandermonde(weights, Lambda_bar, L)
    shape = torch.broadcast_shapes(weights.shape, Lambda_bar.shape)
    w = torch.stack([part.expand(shape) for part in (real(weights), imag(weights))], dim=-2)
    a = as_planes(Lambda_bar)
    if Lambda_bar.shape != shape[len(shape) - Lambda_bar.ndim :]:
        a = a.expand(*shape[:-1], 2, shape[-1])
    K = sums_of_powers(w.reshape(-1, 2, shape[-1]), a.reshape(-1, 2, shape[-1]), L)
    return K.view(*shape[:-1], L)


def applies(x: Tensor) -> bool:
    """Whether the kernels of convolutions take a call: float32 of some size, no transformation but vmap."""
    return kernel_path(x.device) != "torch" and x.dtype == torch.float32 and math.prod(x.shape) > 0 and plain_or_vmap()
