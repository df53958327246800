"""S5's chunks of one sample as one operator: product, states of all directions from one drive, product and skip."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptd.arrays import Array, as_planes

from .chunked import NARROW, inner_last
from .derivatives import refuse_second
from .from_rest import drive_gradient, states_from_rest
from .scan import kernel_path


def mixing_states(
    u: Tensor, Lambda_bar: Array, into: Tensor, out: Tensor, skip: Tensor | None, *, tiled: bool = True
) -> Tensor:
    """See ptd.kernels.Kernels.mixing_states; tiled computes the states by ptd_torch.triton.states where it can."""
    *batch, n, H = u.shape
    into, out = into.to(u.dtype), out.to(u.dtype)  # where a compiler sees it, as in ptd_torch.chunked
    added = skip is None or joined(u, out)
    y, _ = states_form(u.reshape(math.prod(batch), n, H), as_planes(Lambda_bar), into, out, skip, added, tiled)
    y = y.view(u.shape)
    # Where the product is the library's, the compiler joins this with what stands beside it; the operator has the
    # gradient of skip.
    return y if skip is None or added else y + skip.detach().to(u.dtype) * u


def joined(u: Tensor, out: Tensor) -> bool:
    """Whether the product that makes y adds D u as it writes."""
    H = len(out)
    return kernel_path(u.device) != "torch" and NARROW.get(u.dtype, 0) >= H and H % 64 == 0


@torch.library.custom_op("ptd::states_form", mutates_args=())
def states_form(
    u: Tensor, a: Tensor, into: Tensor, out: Tensor, skip: Tensor | None, added: bool, tiled: bool
) -> tuple[Tensor, Tensor]:
    """y = out x + skip u, x the states after each sample, from rest, of all directions.

    Args:
        u: (R, n, H).
        a: (2, M), the decay of a sample.
        into, out: (2 M, H) and (H, D 2 M), in the dtype of u.
        skip: (H,) or None.
        added: whether y has skip u. Else the caller adds it, and takes the gradient by u of what it adds; that by skip
            is the operator's in either case.
        tiled: whether the states are computed tile by tile.

    Returns:
        y (R, n, H) and, for the gradient, the states (R, n, D, 2, M).
    """
    return forward(u, a, into, out, skip if added else None, tiled)


@states_form.register_fake
def _(
    u: Tensor, a: Tensor, into: Tensor, out: Tensor, skip: Tensor | None, added: bool, tiled: bool
) -> tuple[Tensor, Tensor]:
    return room(u, a, out)


@torch.library.custom_op("ptd::states_form_adjoint", mutates_args=())
def states_form_adjoint(
    dy: Tensor, states: Tensor, u: Tensor, a: Tensor, into: Tensor, out: Tensor, skip: Tensor | None, added: bool,
    tiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of states_form by u, a, into, out and skip; that by skip is empty if there is none."""
    drive, *grads = states_gradients(dy, states, u, a, out, tiled)
    rows, dy = u.reshape(-1, u.shape[-1]), dy.reshape(-1, u.shape[-1])
    if skip is not None and added:
        du, dskip = product_and_sums(drive, into.t(), skip, dy, rows)
    else:
        du = drive @ inner_last(into)
        dskip = a.new_empty(0) if skip is None else dot_columns(dy, rows, skip.dtype)
    return du.view(u.shape), *grads, dskip


@states_form_adjoint.register_fake
def _(
    dy: Tensor, states: Tensor, u: Tensor, a: Tensor, into: Tensor, out: Tensor, skip: Tensor | None, added: bool,
    tiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    grads = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (a, into, out))
    return du, *grads, a.new_empty(0 if skip is None else len(skip))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    u, a, into, out, skip, ctx.added, ctx.tiled = inputs
    ctx.save_for_backward(output[1], u, a, into, out, skip)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple:
    if dy is None:
        return (None,) * 7
    states, u, *rest = ctx.saved_tensors
    *grads, dskip = states_form_adjoint(dy.to(u.dtype), states, u, *rest, ctx.added, ctx.tiled)
    return *grads, None if rest[-1] is None else dskip, None, None


states_form.register_autograd(_backward, setup_context=_setup_context)
states_form_adjoint.register_autograd(refuse_second("form='chunked' on a GPU"))


# --- what ptd_torch.normed_states has as well ---------------------------------------------------------------------


def forward(u: Tensor, a: Tensor, into: Tensor, out: Tensor, skip: Tensor | None, tiled: bool) -> tuple[Tensor, Tensor]:
    """The product, states and product of states_form: y (R, n, H), with skip u where skip is not None, and states."""
    (R, n, H), M = u.shape, a.shape[-1]
    rows = u.reshape(R * n, H)
    drive = (rows @ into.t()).view(R, n, 1, 2, M)
    states = states_from_rest(a, drive, out.shape[-1] // (2 * M), tiled=tiled)
    return product(states.view(R * n, out.shape[-1]), out, skip, rows).view(R, n, H), states


def room(u: Tensor, a: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Room for y and the states."""
    (R, n, _), M = u.shape, a.shape[-1]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    return y, u.new_empty(R, n, out.shape[-1] // (2 * M), 2, M)


def states_gradients(
    dy: Tensor, states: Tensor, u: Tensor, a: Tensor, out: Tensor, tiled: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of the drive (R n, 2 M), and those by a, into and out."""
    (R, n, H), M = u.shape, a.shape[-1]
    rows, dy = u.reshape(R * n, H), dy.reshape(R * n, H)
    # TF32 products are half again as fast where both factors lie along the inner dimension (benchmarks/notes.md).
    entering = (dy @ inner_last(out)).view(states.shape)
    drive, grad_a = drive_gradient(a, entering, states, tiled=tiled, shared=True)
    drive = drive.view(R * n, 2 * M)
    return drive, grad_a, drive.t() @ rows, dy.t() @ states.view(R * n, out.shape[-1])


# --- products ----------------------------------------------------------------------------------------------------


def product(x: Tensor, weight: Tensor, skip: Tensor | None, u: Tensor) -> Tensor:
    """x weight^T + skip u of rows x (R, K) and u (R, N), in their dtype."""
    weight = weight.to(x.dtype)
    if skip is not None and joined(u, weight):
        from .triton import products

        return products.product_and_skip(x, weight.contiguous(), skip, u.contiguous(), None)[0]
    y = x @ weight.t()
    return y if skip is None else y + skip.to(u.dtype) * u


def product_and_sums(x: Tensor, weight: Tensor, skip: Tensor, dy: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """x weight^T + skip dy, and the sums (N,) over rows of dy u."""
    weight = weight.to(x.dtype)
    if joined(u, weight):
        from .triton import products

        rows = (v.contiguous() for v in (dy, u))
        return products.product_and_skip(x, weight.contiguous(), skip, *rows)
    return product(x, weight, skip, dy), dot_columns(dy, u, skip.dtype)


def dot_columns(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums (N,) over rows of x y, in dtype."""
    if kernel_path(x.device) != "torch" and x.shape[-1] % 64 == 0 and x.dtype in NARROW:
        from .triton import columns

        return columns.dot(x.contiguous(), y.contiguous()).to(dtype)
    return (x.to(dtype) * y.to(dtype)).sum(0)
