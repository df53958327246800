"""Diagonal systems and their matrices over chunks, as two torch operators with their gradients, on Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptd.arrays import Array, as_planes, from_planes
from ptd.chunks import ChunkSystem

from .derivatives import refuse_second
from .scan import kernel_path
from .transforms import plain


@torch.library.custom_op("ptd::zoh", mutates_args=())
def zoh(Lambda: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """ptd.discretization.zoh: Lambda_bar and gain, planes like Lambda.

    Args:
        Lambda: float32 (H, 2, M), planes.
        step: float32 (H,).
    """
    from .triton import zoh as kernels

    return kernels.zoh(Lambda.contiguous(), step.contiguous())


@zoh.register_fake
def _(Lambda: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return Lambda.new_empty(Lambda.shape), Lambda.new_empty(Lambda.shape)


@torch.library.custom_op("ptd::zoh_adjoint", mutates_args=())
def zoh_adjoint(Lambda: Tensor, step: Tensor, grad_a: Tensor, grad_gain: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of zoh by Lambda and step."""
    from .triton import zoh as kernels

    return kernels.gradients(*(v.contiguous() for v in (Lambda, step, grad_a, grad_gain)))


@zoh_adjoint.register_fake
def _(Lambda: Tensor, step: Tensor, grad_a: Tensor, grad_gain: Tensor) -> tuple[Tensor, Tensor]:
    return Lambda.new_empty(Lambda.shape), step.new_empty(step.shape)


def _setup_zoh(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs)


zoh.register_autograd(lambda ctx, *grads: zoh_adjoint(*ctx.saved_tensors, *grads), setup_context=_setup_zoh)
zoh_adjoint.register_autograd(refuse_second("form='chunked' on a GPU"))


@torch.library.custom_op("ptd::diagonal_matrices", mutates_args=())
def matrices(a: Tensor, rows: Tensor, C: Tensor, skip: Tensor | None, T: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrices of H diagonal systems over chunks of T samples; see ptd.chunks.

    Args:
        a: float32 (H, 2, M), planes of Lambda_bar.
        rows: float32 (H, 2, M), of what a sample adds to the modes.
        C: float32 (H, D, 2, M), of what is read from them in each direction, as its real part.
        skip: float32 (H,), what a sample adds to its own output besides, or None.
        T: a power of two.

    Returns:
        decay (H, 2, M), into (H, T, D 2 M), out (H, D 2 M, T) and direct (H, T, T), float32.
    """
    from .triton import diagonal as kernels

    a, rows, C, skip = (None if v is None else v.contiguous() for v in (a, rows, C, skip))
    return kernels.matrices(a, rows, C, skip, T)


@matrices.register_fake
def _(a: Tensor, rows: Tensor, C: Tensor, skip: Tensor | None, T: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    H, D, _, M = C.shape
    new = a.new_empty
    return new((H, 2, M)), new((H, T, D * 2 * M)), new((H, D * 2 * M, T)), new((H, T, T))


@torch.library.custom_op("ptd::diagonal_matrices_adjoint", mutates_args=())
def adjoint(
    a: Tensor, rows: Tensor, C: Tensor, skip: bool,
    grad_decay: Tensor, grad_into: Tensor, grad_out: Tensor, grad_direct: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of matrices by a, rows, C and, where there is one, skip."""
    from .triton import diagonal as kernels

    a, rows, C, *grads = (v.contiguous() for v in (a, rows, C, grad_decay, grad_into, grad_out, grad_direct))
    return kernels.gradients(a, rows, C, skip, tuple(grads))


@adjoint.register_fake
def _(
    a: Tensor, rows: Tensor, C: Tensor, skip: bool,
    grad_decay: Tensor, grad_into: Tensor, grad_out: Tensor, grad_direct: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    new = a.new_empty
    return new(a.shape), new(a.shape), new(C.shape), new(len(a) if skip else 0)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    a, rows, C, skip, _ = inputs
    ctx.skip = skip is not None
    ctx.save_for_backward(a, rows, C)


def _backward(ctx: Any, *grads: Tensor) -> tuple:
    by_a, by_rows, by_C, by_skip = adjoint(*ctx.saved_tensors, ctx.skip, *grads)
    return by_a, by_rows, by_C, by_skip if ctx.skip else None, None


matrices.register_autograd(_backward, setup_context=_setup_context)
adjoint.register_autograd(refuse_second("form='chunked' on a GPU"))


def diagonal_chunks(
    rule: str, Lambda: Array, step: Tensor, B: Array, C: list[Array], skip: Tensor | None, T: int
) -> ChunkSystem | None:
    """See ptd.kernels.Kernels.diagonal_chunks."""
    if kernel_path(step.device) == "torch" or step.dtype != torch.float32 or T & (T - 1) or not plain():
        return None
    planes = torch.stack([as_planes(c) for c in C], dim=1)
    H, _, _, M = planes.shape
    if not M or rule != "zoh":
        return None
    a, gain = zoh(as_planes(Lambda).expand(H, 2, M), step.reshape(H))
    rows = as_planes(from_planes(gain) * B)
    decay, *rest = matrices(a, rows, planes, skip, T)
    return ChunkSystem(from_planes(decay), *rest)
