"""Powers of S4's transitions over a chunk as one torch operator with its gradient, on Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptd import chunks

from .derivatives import refuse_second
from .transforms import folded
from .vandermonde import applies


@torch.library.custom_op("ptd::orbits", mutates_args=())
def operator(A: Tensor, row: Tensor, columns: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ptd.chunks.orbits and the squares it passed, A^(2^k), float32 (H, log2(T) + 1, n, n).

    Args:
        A: float32 (H, n, n), n at most 128.
        row: float32 (H, n).
        columns: float32 (H, n, D).
        T: a power of two.
    """
    from .triton import orbits as kernels

    rows, out, powers = kernels.orbits(A.contiguous(), row.contiguous(), columns.contiguous(), T)
    return rows, out, powers[:, -1].clone(), powers


@operator.register_fake
def _(A: Tensor, row: Tensor, columns: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    H, n, D = columns.shape
    new = A.new_empty
    return new((H, T, n)), new((H, D, n, T)), new((H, n, n)), new((H, T.bit_length(), n, n))


@torch.library.custom_op("ptd::orbits_adjoint", mutates_args=())
def adjoint(
    powers: Tensor, columns: Tensor, rows: Tensor, out: Tensor, grad_rows: Tensor, grad_out: Tensor, grad_whole: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the operator by A, as a part for each orbit (H, 1 + D, n, n), by row and by columns."""
    from .triton import orbits as kernels

    return kernels.gradients(*(x.contiguous() for x in (powers, columns, rows, out, grad_rows, grad_out, grad_whole)))


@adjoint.register_fake
def _(
    powers: Tensor, columns: Tensor, rows: Tensor, out: Tensor, grad_rows: Tensor, grad_out: Tensor, grad_whole: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    H, n, D = columns.shape
    new = columns.new_empty
    return new((H, 1 + D, n, n)), new((H, n)), new((H, n, D))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    rows, out, _, powers = output
    ctx.mark_non_differentiable(powers)
    ctx.save_for_backward(powers, inputs[2], rows, out)


def _backward(ctx: Any, *grads: Tensor) -> tuple:
    parts, grad_row, grad_columns = adjoint(*ctx.saved_tensors, *(grad.contiguous() for grad in grads[:3]))
    return parts.sum(1), grad_row, grad_columns, None


operator.register_autograd(_backward, setup_context=_setup_context)
adjoint.register_autograd(refuse_second("form='chunked' on a GPU"))


@operator.register_vmap
def _(info: Any, dims: tuple, A: Tensor, row: Tensor, columns: Tensor, T: int) -> tuple[tuple, tuple]:
    """The batch as further features."""
    size = info.batch_size
    given = (folded(value, dim, size) for value, dim in zip((A, row, columns), dims[:3], strict=True))
    return tuple(value.unflatten(0, (size, -1)) for value in operator(*given, T)), (0,) * 4


def orbits(A: Tensor, row: Tensor, columns: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor]:
    """ptd.chunks.orbits."""
    if T & (T - 1) or T > 64 or A.shape[-1] > 128 or not applies(A):
        return chunks.orbits(A, row, columns, T)
    return operator(A.contiguous(), row, columns, T)[:3]  # here, where the compiler can write it so
