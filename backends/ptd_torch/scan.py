"""The diagonal recurrence as a torch operator, with its gradient: Triton where there is a GPU, tensors elsewhere.

States are real planes (..., 2, M) of real and imaginary parts. The adjoint of the recurrence is the recurrence with
conjugate coefficients in the other direction, so one implementation runs both.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ptd import checks

HAS_TRITON = importlib.util.find_spec("triton") is not None


def kernel_path(device: torch.device) -> str:
    """What runs recurrences and sums of convolution kernels on a device: "triton", "triton interpreter" or "torch"."""
    if HAS_TRITON and device.type == "cuda":
        return "triton"
    interpreted = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
    return "triton interpreter" if interpreted else "torch"


@torch.library.custom_op("ptd::scan", mutates_args=())
def scan(a: Tensor, drive: Tensor, x0: Tensor | None, exclusive: bool) -> tuple[Tensor, Tensor]:
    """All states of x_k = a_k x_{k-1} + drive_k, in D directions at once.

    Args:
        a: (2, M), (G, 2, M) for G equal groups of rows, or, unless exclusive, (R, n, 2, M) per step.
        drive: (R, n, D, 2, M); direction 0 runs left to right, direction 1 right to left; D = 1 unless exclusive.
        x0: (R, D, 2, M), the states before the first sample of each direction; zero if None.
        exclusive: the states before each sample, and the final ones; else those after each sample, and no final.

    Returns:
        x (R, n, D, 2, M) in the dtype of drive, and final (R, D, 2, M) in that of a, the dtype computed in.
    """
    _check(a, drive, exclusive)
    x, final, _ = walk(a, drive, x0, exclusive=exclusive)
    return x, final if exclusive else final.new_empty(0)


@scan.register_fake
def _(a: Tensor, drive: Tensor, x0: Tensor | None, exclusive: bool) -> tuple[Tensor, Tensor]:
    _check(a, drive, exclusive)
    R, _, D, _, M = drive.shape
    return torch.empty_like(drive, memory_format=torch.contiguous_format), a.new_empty((R, D, 2, M) if exclusive else 0)


def _check(a: Tensor, drive: Tensor, exclusive: bool) -> None:
    """Refuse what the adjoint does not cover."""
    if exclusive and a.ndim == 4:
        raise checks.fail("exclusive", "False with coefficients per step", exclusive, "shift the states")
    if not exclusive and drive.shape[2] != 1:
        raise checks.fail("drive", "one direction unless exclusive", tuple(drive.shape), "flip the other")


@torch.library.custom_op("ptd::scan_adjoint", mutates_args=())
def scan_adjoint(
    a: Tensor, states: Tensor, grad: Tensor, grad_final: Tensor, exclusive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of scan by drive, a (per row, or per step) and x0, from those of its results."""
    start = grad_final if exclusive else None
    drive, final, grad_a = walk(a, grad, start, exclusive=exclusive, before=states)
    if not exclusive:  # through the first coefficient to the state before it
        first = a[:, 0] if a.ndim == 4 else _per_row(a, len(drive))
        final = _times_conj(drive[:, 0].to(a.dtype), first[:, None])
    return drive, grad_a, final


@scan_adjoint.register_fake
def _(a: Tensor, states: Tensor, grad: Tensor, grad_final: Tensor, exclusive: bool) -> tuple[Tensor, Tensor, Tensor]:
    R, _, D, _, M = states.shape
    drive = torch.empty_like(states)
    return drive, torch.empty_like(a) if a.ndim == 4 else a.new_empty((R, D, 2, M)), a.new_empty((R, D, 2, M))


def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    """What the gradient of scan keeps of a call."""
    a, _, x0, ctx.exclusive = inputs
    ctx.has_x0 = x0 is not None
    # The state before the first sample is x0 itself; the gradient of a needs it where states are those after.
    ctx.save_for_backward(a, output[0], None if ctx.exclusive else x0)


def backward(
    ctx: Any, grad: Tensor, grad_final: Tensor, *, adjoint: Callable[..., tuple[Tensor, ...]] = scan_adjoint
) -> tuple:
    """The gradient of scan by its arguments; adjoint runs scan_adjoint."""
    a, x, x0 = ctx.saved_tensors
    if torch.is_grad_enabled() and adjoint is scan_adjoint:  # this gradient will be differentiated
        adjoint = adjoint_by_scans
    drive, grad_a, grad_x0 = adjoint(a, x, grad.to(x.dtype), grad_final, ctx.exclusive)
    if x0 is not None:
        first = _times_conj(drive[:, 0].to(a.dtype), x0.to(a.dtype))
        grad_a = torch.cat([grad_a[:, :1] + first, grad_a[:, 1:]], dim=1) if a.ndim == 4 else grad_a + first
    if a.ndim != 4:
        groups = 1 if a.ndim == 2 else a.shape[0]
        grad_a = grad_a.reshape(groups, -1, *a.shape[-2:]).sum(1).reshape(a.shape)
    return grad_a, drive, grad_x0 if ctx.has_x0 else None, None


scan.register_autograd(backward, setup_context=setup_context)


def adjoint_by_scans(
    a: Tensor, states: Tensor, grad: Tensor, grad_final: Tensor, exclusive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What scan_adjoint computes, by scans in the other direction and products: it has every derivative."""
    backwards = 2 if states.shape[2] == 2 else 1  # two directions change places, one is turned in time
    conjugate = a * a.new_tensor([[1.0], [-1.0]])
    if exclusive:
        drive, final = scan(conjugate, grad.flip(backwards), grad_final.flip(1), True)
        drive, final, before = drive.flip(backwards), final.flip(1), states
    else:
        if a.ndim == 4:  # the adjoint at k is driven through the coefficient of step k + 1
            conjugate = torch.cat([conjugate[:, 1:], torch.zeros_like(conjugate[:, :1])], dim=1).flip(1)
        drive = scan(conjugate, grad.flip(1), None, False)[0].flip(1)
        first = a[:, 0] if a.ndim == 4 else _per_row(a, len(drive))
        final = _times_conj(drive[:, 0].to(a.dtype), first[:, None])
        before = _delayed(states[:, :, 0], False)[:, :, None]
    grad_a = _times_conj(drive.to(a.dtype), before.to(a.dtype))
    return drive, grad_a[:, :, 0] if a.ndim == 4 else grad_a.sum(1), final


def _per_row(a: Tensor, rows: int) -> Tensor:
    """Coefficients without a time axis as (rows, 2, M), or (1, 2, M) where all share them."""
    return a[None] if a.ndim == 2 else a.repeat_interleave(rows // a.shape[0], dim=0)


def _times_conj(x: Tensor, a: Tensor) -> Tensor:
    """x conj(a) on planes (..., 2, M)."""
    (x_re, x_im), (a_re, a_im) = x.unbind(-2), a.unbind(-2)
    return torch.stack([x_re * a_re + x_im * a_im, x_im * a_re - x_re * a_im], dim=-2)


def walk(a: Tensor, drive: Tensor, x0: Tensor | None, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """What triton.scan.walk does, on any device; nothing differentiates through it."""
    if kernel_path(drive.device) == "torch":
        return _walk_tensors(a, drive, x0, **options)
    from .triton import scan as kernels

    return kernels.walk(a, drive, x0, **options)


# --- without Triton --------------------------------------------------------------------------------------------


def _walk_tensors(
    a: Tensor, drive: Tensor, x0: Tensor | None, *, exclusive: bool, before: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """triton.scan.walk with tensor operations on native complex numbers; nothing differentiates through it."""
    R, n, D = drive.shape[:3]
    adjoint = before is not None
    coefficients = _native(_per_row(a, R)[:, None] if a.ndim < 4 else a)
    if adjoint:
        coefficients = coefficients.conj().resolve_conj()
        if a.ndim == 4:  # the adjoint at k is driven through the coefficient of step k + 1
            coefficients = torch.cat([coefficients[:, 1:], torch.zeros_like(coefficients[:, :1])], dim=1)
    results, finals = [], []
    for direction in range(D):
        mirrored = direction != int(adjoint)
        d = _native(drive[:, :, direction].to(a.dtype))
        start = torch.zeros_like(d[:, 0]) if x0 is None else _native(x0[:, direction].to(a.dtype))
        d, c = (v.flip(1) if mirrored and v.shape[1] > 1 else v for v in (d, coefficients))
        x = _states(c, d, start)
        finals.append(x[:, -1] if n else start)
        x = torch.cat([start[:, None], x[:, :-1]], dim=1) if exclusive else x
        results.append(x.flip(1) if mirrored else x)
    x = torch.stack([_planes(v) for v in results], dim=2)
    final = torch.stack([_planes(v) for v in finals], dim=1)
    if before is None:
        return x.to(drive.dtype), final, None
    if not exclusive:
        before = torch.stack([_delayed(before[:, :, d], d == 1) for d in range(D)], dim=2)
    grad = _times_conj(x, before.to(a.dtype))
    return x.to(drive.dtype), final, grad[:, :, 0] if a.ndim == 4 else grad.sum(1)


def _states(a: Tensor, drive: Tensor, x0: Tensor) -> Tensor:
    """x_k = a_k x_{k-1} + drive_k for complex (R, n, M): about 2 sqrt(n) operations on all segments at once."""
    R, n, M = drive.shape
    if n == 0:
        return drive
    K = math.isqrt(n - 1) + 1
    S = -(-n // K)
    pad = (0, 0, 0, S * K - n)
    x = torch.nn.functional.pad(drive, pad).view(R, S, K, M)
    if a.shape[1] == 1:
        powers = a[:, None].expand(-1, 1, K, M).cumprod(2)
        step = a[:, None, 0]
        for k in range(1, K):
            x[:, :, k] += step * x[:, :, k - 1]
    else:
        a = torch.nn.functional.pad(a, pad, value=1.0).view(R, S, K, M)
        powers = a.cumprod(2)
        for k in range(1, K):
            x[:, :, k] += a[:, :, k] * x[:, :, k - 1]
    carry, entering = x0, []
    whole = powers[:, :, -1].expand(-1, S, M)
    for s in range(S):
        entering.append(carry)
        carry = whole[:, s] * carry + x[:, s, -1]
    x += powers * torch.stack(entering, dim=1)[:, :, None]
    return x.view(R, S * K, M)[:, :n]


def _delayed(x: Tensor, mirrored: bool) -> Tensor:
    """The state before each sample, zero before the first, from those after it."""
    none = torch.zeros_like(x[:, :1])
    return torch.cat([x[:, 1:], none] if mirrored else [none, x[:, :-1]], dim=1)


def _native(planes: Tensor) -> Tensor:
    return torch.complex(*(part.contiguous() for part in planes.unbind(-2)))


def _planes(x: Tensor) -> Tensor:
    return torch.stack([x.real, x.imag], dim=-2)
