"""The chunked form of layers with a system per feature as one torch operator, with its gradient, on Triton."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptd.arrays import Array, as_planes
from ptd.chunks import ChunkSystem

from .derivatives import refuse_second
from .scan import kernel_path
from .transforms import plain


@torch.library.custom_op("ptd::chunks", mutates_args=())
def chunks(
    u: Tensor, decay: Tensor, into: Tensor, out: Tensor, direct: Tensor, x0: Tensor | None, lengths: Tensor | None,
    features_first: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs and final states of H systems over chunks of T samples, and what the gradient needs.

    Args:
        u: (R, L, H), the signals; read in place where they lie in memory as the kernels have them, (H, R, L), in whole
            chunks and without lengths.
        decay: float32 (H, 2, M), the transition over a chunk, or a matrix (H, 2, M, 2, M) from states to states.
        into: (H, T, D 2 M), in the dtype of u, as out and direct; see ptd.chunks.ChunkSystem.
        out: (H, D 2 M, T).
        direct: (H, T, T).
        x0: float32 (H, D, R, 2, M), the states before the first chunk of each direction; zero if None.
        lengths: integer (R,), or None; u counts as zero and y is zero from there on.
        features_first: whether y is left in memory as the kernels have it, (H, R, L); with whole chunks, without
            lengths.

    Returns:
        y (R, L, H); final (H, D, R, 2, M), with lengths of no entries; and for the gradient the signals as (H, R, n T),
        of no entries if u is read in place, and the states that enter each chunk, (H, R, n, D, 2, M), both in the dtype
        of u and not set in chunks without a valid sample.
    """
    from .triton import chunks as kernels
    from .triton import turns

    L, T = u.shape[1], into.shape[1]
    matrices = kernels.Matrices(*(m.contiguous() for m in (decay, into, out, direct)))
    x0, lengths = (None if value is None else value.contiguous() for value in (x0, lengths))
    v, copy = _in_place(u, T, lengths), u.new_empty(0)
    if v is None:
        v = copy = turns.to_features(u, -(-L // T) * T, lengths, T)
    y, final, entering = kernels.run(v, matrices, x0, lengths, last=lengths is None)
    y = y.movedim(0, -1) if features_first else turns.from_features(y, L, lengths)
    return y, decay.new_empty(0) if final is None else final, copy, entering


def _in_place(u: Tensor, T: int, lengths: Tensor | None) -> Tensor | None:
    """u (R, L, H) as (H, R, L), where it lies so in memory and the kernels can read it; else None."""
    turned = u.movedim(-1, 0)
    whole = lengths is None and u.shape[1] % T == 0
    return turned if whole and turned.is_contiguous() and not u.is_contiguous() else None


@chunks.register_fake
def _(
    u: Tensor, decay: Tensor, into: Tensor, out: Tensor, direct: Tensor, x0: Tensor | None, lengths: Tensor | None,
    features_first: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (R, L, H), (_, T, width), M = u.shape, into.shape, decay.shape[-1]
    n, D = -(-L // T), width // (2 * M)
    final = decay.new_empty((H, D, R, 2, M) if lengths is None else 0)
    y = u.new_empty((H, R, L)).movedim(0, -1) if features_first else u.new_empty(u.shape)
    copy = u.new_empty((H, R, n * T) if _in_place(u, T, lengths) is None else 0)
    return y, final, copy, u.new_empty((H, R, n, D, 2, M))


@torch.library.custom_op("ptd::chunks_adjoint", mutates_args=())
def chunks_adjoint(
    v: Tensor,
    decay: Tensor,
    into: Tensor,
    out: Tensor,
    direct: Tensor,
    entering: Tensor,
    lengths: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
    has_x0: bool,
    features_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of chunks by its arguments, that by x0 of no entries without it, from those of y and of final.

    features_first: whether that by u is left in memory as the kernels have it.
    """
    from .triton import chunks as kernels
    from .triton import turns

    matrices = kernels.Matrices(*(m.contiguous() for m in (decay, into, out, direct)))
    grad_final, lengths = (None if value is None else value.contiguous() for value in (grad_final, lengths))
    L, T = grad_y.shape[1], into.shape[1]
    grad = _in_place(grad_y, T, lengths)
    if grad is None:
        grad = turns.to_features(grad_y, v.shape[-1], lengths, T)
    grad_v, sums, grad_x0 = kernels.run_backward(v, matrices, entering, lengths, grad, grad_final, first=has_x0)
    grad_x0 = decay.new_empty(0) if grad_x0 is None else grad_x0
    rest = (sums.into.to(into.dtype), sums.out.to(out.dtype), sums.direct.to(direct.dtype))
    grad_u = grad_v.movedim(0, -1) if features_first else turns.from_features(grad_v, L, lengths)
    return grad_u, sums.decay, *rest, grad_x0


@chunks_adjoint.register_fake
def _(
    v: Tensor,
    decay: Tensor,
    into: Tensor,
    out: Tensor,
    direct: Tensor,
    entering: Tensor,
    lengths: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
    has_x0: bool,
    features_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    H, R, _, D, _, M = entering.shape
    matrices = (m.new_empty(m.shape) for m in (decay, into, out, direct))
    grad_u = torch.empty_like(v).movedim(0, -1) if features_first else grad_y.new_empty(grad_y.shape)
    return grad_u, *matrices, decay.new_empty((H, D, R, 2, M) if has_x0 else 0)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    u, decay, into, out, direct, x0, lengths, _ = inputs
    _, _, copy, entering = output
    v = _in_place(u, into.shape[1], lengths)
    ctx.has_x0, ctx.length, ctx.in_place = x0 is not None, u.shape[1], v is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(copy, entering)
    ctx.save_for_backward(copy if v is None else v, decay, into, out, direct, entering, lengths)


def _backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None, *_: Any) -> tuple:
    v, *saved = ctx.saved_tensors
    if saved[-1] is not None:  # lengths, with which there is no final state
        grad_final = None
    if grad_y is None:
        H, R, _ = v.shape
        grad_y = v.new_zeros((R, ctx.length, H))
    *grads, grad_x0 = chunks_adjoint(v, *saved, grad_y.to(v.dtype), grad_final, ctx.has_x0, ctx.in_place)
    return *grads, grad_x0 if ctx.has_x0 else None, None, None


chunks.register_autograd(_backward, setup_context=_setup_context)
chunks_adjoint.register_autograd(refuse_second("form='chunked' on a GPU"))


def per_feature_chunks(
    u: Tensor, system: ChunkSystem, state: Array | None, lengths: Tensor | None, *, features_first: bool = False
) -> tuple[Tensor, Tensor | None] | None:
    """See ptd.kernels.Kernels.per_feature_chunks; features_first as in chunks, where that can be."""
    if not _applies(u, system):
        return None
    *batch, L, H = u.shape
    R = math.prod(batch)
    decay = system.decay if isinstance(system.decay, Tensor) else as_planes(system.decay)
    M, width = decay.shape[-1], system.into.shape[-1]
    x0 = None
    if state is not None:
        x0 = state.expand(H, *batch, 2, M).reshape(H, 1, R, 2, M)
        if width == 4 * M:
            x0 = torch.cat([x0, torch.zeros_like(x0)], dim=1)
    matrices = (m.to(u.dtype).contiguous() for m in (system.into, system.out, system.direct))
    valid = None if lengths is None else lengths.expand(batch).reshape(R)
    features_first = features_first and valid is None and L % system.into.shape[1] == 0
    y, final, _, _ = chunks(u.reshape(R, L, H), decay, *matrices, x0, valid, features_first)
    if valid is not None:
        return y.view(u.shape), None
    return y.view(u.shape), final.transpose(1, 2).reshape(H, *batch, final.shape[1], 2, M)


def _applies(u: Tensor, system: ChunkSystem) -> bool:
    """Whether the kernels take a call: chunks of 16, 32 or 64 samples, float32 states, no transformation or tangent."""
    T = system.into.shape[1]
    return (
        kernel_path(u.device) != "torch"
        and T in (16, 32, 64)
        and system.into.dtype == torch.float32
        and u.numel() > 0
        and plain()
    )
