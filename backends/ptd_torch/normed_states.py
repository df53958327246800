"""S5's chunks of one sample behind a batch norm as one operator: the norm's gradient in the pass that adds skip's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptd.arrays import Array, as_planes
from ptd.model import NORM_EPSILON

from . import states
from .chunked import inner_last
from .derivatives import refuse_second
from .norm import Normed, over_whole_batch
from .norm import gradients as norm_gradients
from .states import forward, joined, room, states_gradients


def mixing_states(
    u: Tensor, Lambda_bar: Array, into: Tensor, out: Tensor, skip: Tensor | None,
    *, tiled: bool = True, normed: Normed | None = None,
) -> Tensor:  # fmt: skip
    """ptd_torch.states.mixing_states, with the gradient by u as that by what u is the batch norm of, where it can.

    Without normed, and where no pass adds skip's gradient, it is that function. The norm's lengths are those from which
    on u is zero.
    """
    if normed is None or skip is None or joined(u, out.to(u.dtype)):
        return states.mixing_states(u, Lambda_bar, into, out, skip, tiled=tiled)
    *batch, n, H = u.shape
    into, out, u = into.to(u.dtype), out.to(u.dtype), u.detach()
    x, *norm, lengths = normed
    rows, x = (v.reshape(math.prod(batch), n, H) for v in (u, x))
    lengths = None if lengths is None else lengths.reshape(-1)
    y, _ = normed_states_form(rows, x, *norm, lengths, as_planes(Lambda_bar), into, out, skip, tiled)
    return y.view(u.shape) + skip.detach().to(u.dtype) * u


@torch.library.custom_op("ptd::normed_states_form", mutates_args=())
def normed_states_form(
    u: Tensor, x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor, lengths: Tensor | None, a: Tensor,
    into: Tensor, out: Tensor, skip: Tensor, tiled: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """states_form of u, the batch norm of x, without skip u, which the caller adds; all gradients are the operator's,
    but that by u goes on to x, scale and bias.

    Args:
        u, x: (R, n, H).
        scale, bias, moments, lengths: as ptd_torch.norm.batch_normalized takes them, lengths (R,); from there on u is
            zero.
        a, into, out, skip, tiled: as in states_form.
    """
    return forward(u, a, into, out, None, tiled)


@normed_states_form.register_fake
def _(
    u: Tensor, x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor, lengths: Tensor | None, a: Tensor,
    into: Tensor, out: Tensor, skip: Tensor, tiled: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return room(u, a, out)


@torch.library.custom_op("ptd::normed_states_form_adjoint", mutates_args=())
def normed_states_form_adjoint(
    dy: Tensor, states: Tensor, u: Tensor, x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor,
    lengths: Tensor | None, a: Tensor, into: Tensor, out: Tensor, skip: Tensor, tiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of normed_states_form by u, a, into and out, and (6, H): what norm_adjoint finds, and dskip."""
    from .triton import norm as kernels

    drive, *grads = states_gradients(dy, states, u, a, out, tiled)
    du = (drive @ inner_last(into)).view(u.shape)
    dy, x, skip, scale, bias, moments = (v.contiguous() for v in (dy, x, skip, scale, bias, moments))
    lengths = None if lengths is None else lengths.contiguous()
    found = kernels.adjoint_through_skip(du, dy, x, skip, scale, bias, moments, lengths, NORM_EPSILON)
    found = over_whole_batch(found, x, lengths)
    return du, *grads, found


@normed_states_form_adjoint.register_fake
def _(
    dy: Tensor, states: Tensor, u: Tensor, x: Tensor, scale: Tensor, bias: Tensor, moments: Tensor,
    lengths: Tensor | None, a: Tensor, into: Tensor, out: Tensor, skip: Tensor, tiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grads = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (u, a, into, out))
    return *grads, scale.new_empty(6, len(scale))


def _setup_normed_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.tiled = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _normed_backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple:
    if dy is None:
        return (None,) * 11
    states, u, x, *norm, lengths, a, into, out, skip = ctx.saved_tensors
    du, *grads, found = normed_states_form_adjoint(
        dy.to(u.dtype), states, u, x, *norm, lengths, a, into, out, skip, ctx.tiled
    )
    return None, *norm_gradients(du, x, found[:5], lengths), None, None, *grads, found[5], None


normed_states_form.register_autograd(_normed_backward, setup_context=_setup_normed_context)
normed_states_form_adjoint.register_autograd(refuse_second("form='chunked' on a GPU"))
