"""The gated end of a block and the moments of its output as one torch operator, on Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptd.model import SequenceModel, Training

from .scan import kernel_path

#: Widths are a multiple of this: tiles are not masked over features.
TILE = 64


def fits(model: SequenceModel, x: Tensor) -> bool:
    """Whether gated_sum runs the end of model's blocks on x; the array code does where it does not.

    gelu alone needs no product, and full_glu two; both are left to the compiler, as are float64 and float16.
    """
    return (
        kernel_path(x.device) != "torch"
        and model.activation in ("half_glu1", "half_glu2")
        and model.residual
        and model.layer.d_model % TILE == 0
        and x.dtype in (torch.float32, torch.bfloat16)
    )


@torch.library.custom_op("ptd::gated_sum", mutates_args=())
def gated_sum(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None, lengths: Tensor | None,
    rate: float, tied: bool, keep_y: bool, moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x + drop(keep sigmoid(W g + b)) with g = drop(gelu(y)), and its moments over batch and valid time.

    Args:
        y: (..., L, H), the layer's output.
        x: (..., L, H), the block's input.
        weight, bias: of the gate, (H, H) and (H,), float32.
        keys: int64 (2,), one per dropout, as ptd_torch.dropout.Dropout.key; None for no dropout.
        lengths: integer (...), valid lengths, for the moments; or None.
        rate, tied: of the dropouts; tied over time or not.
        keep_y: keep is y ("half_glu2"), else g ("half_glu1").
        moments: whether these are wanted; else they are not set.

    Returns:
        out (..., L, H), what backward reads of z, and mean and variance (2, H). Nothing differentiates through the
        moments: known_moments gives them their gradient.
    """
    from . import triton_gate

    parts = (v.contiguous() for v in (y, x, weight, bias))
    out, z, found = triton_gate.forward(*parts, keys, lengths, rate=rate, tied=tied, keep_y=keep_y, moments=moments)
    return out, y.new_empty(0) if z is None else z, found


@gated_sum.register_fake
def _(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None, lengths: Tensor | None,
    rate: float, tied: bool, keep_y: bool, moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from .triton_gate import NARROW

    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    z = torch.empty_like(out) if y.shape[-1] > NARROW else y.new_empty(0)
    return out, z, bias.new_empty(2, len(bias))


@torch.library.custom_op("ptd::gated_sum_adjoint", mutates_args=())
def gated_sum_adjoint(
    y: Tensor, dout: Tensor, z: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None,
    rate: float, tied: bool, keep_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of gated_sum by y, and by weight with bias as a last row; that by x is dout itself."""
    from . import triton_gate

    kept = z if z.numel() else None
    parts = [v.contiguous() for v in (y, dout)]
    return triton_gate.backward(*parts, kept, weight, bias, keys, rate=rate, tied=tied, keep_y=keep_y)


@gated_sum_adjoint.register_fake
def _(
    y: Tensor, dout: Tensor, z: Tensor, weight: Tensor, bias: Tensor, keys: Tensor | None,
    rate: float, tied: bool, keep_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    H = len(bias)
    return torch.empty_like(y, memory_format=torch.contiguous_format), bias.new_empty(H + 1, H)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    y, _, weight, bias, keys, _, ctx.rate, ctx.tied, ctx.keep_y, _ = inputs
    ctx.save_for_backward(y, output[1], weight, bias, keys)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple:
    if dout is None:
        return (None,) * 10
    y, z, weight, bias, keys = ctx.saved_tensors
    dout = dout.to(y.dtype)
    dy, linear = gated_sum_adjoint(y, dout, z, weight, bias, keys, ctx.rate, ctx.tied, ctx.keep_y)
    return dy, dout, linear[:-1], linear[-1], None, None, None, None, None, None


gated_sum.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("ptd::known_moments", mutates_args=())
def known_moments(x: Tensor, known: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean and variance (2, H) of x per feature, known already, with their gradient by x.

    Applied where they are used, not where they were found: so what flows back through them joins the pass over the
    gradient of x that the norm makes anyway.
    """
    return known.clone()


@known_moments.register_fake
def _(x: Tensor, known: Tensor, lengths: Tensor | None) -> Tensor:
    return torch.empty_like(known)


def _setup_known(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_known(ctx: Any, grad: Tensor) -> tuple:
    x, known, lengths = ctx.saved_tensors
    count = x.numel() // x.shape[-1] if lengths is None else lengths.sum()
    found = (grad[0] + 2 * grad[1] * (x - known[0])) / count
    if lengths is not None:
        valid = torch.arange(x.shape[-2], device=x.device) < lengths[..., None]
        found = torch.where(valid[..., None], found, 0.0)
    return found.to(x.dtype), None, None


known_moments.register_autograd(_backward_known, setup_context=_setup_known)


class Finish:
    """SequenceModel.finish by gated_sum, as its block takes it; afterwards moments (2, H) are those of the output."""

    def __init__(self, lengths: Tensor | None, wants_moments: bool):
        self.moments: Tensor | None = None
        self._lengths, self._wants_moments = lengths, wants_moments

    def __call__(self, model: SequenceModel, leaves: dict, y: Tensor, x: Tensor, training: Training) -> Tensor:
        """The block's output, from its layer's output y and its input x."""
        keys = None
        if model.dropout:
            keys = torch.stack([training.dropout.key(), training.dropout.key()])
        out, _, found = gated_sum(
            y, x, leaves["gate.weight"], leaves["gate.bias"], keys, self._lengths,
            model.dropout, model.tie_dropout, model.activation == "half_glu2", self._wants_moments,
        )  # fmt: skip
        if self._wants_moments:
            self.moments = found.detach()
        return out
