"""Operators under torch.func and forward mode: which may run, and the recurrence under vmap, grad and compositions.

An operator with a gradient of its own refuses to run under torch.func.grad (torch 2.13); an autograd.Function with a
rule for vmap does, so the recurrence is wrapped in one where a transformation is active, and nowhere else. In forward
mode an operator drops tangents without a word (torch 2.13), so no operator of a layer runs there: its definition does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import Function, forward_ad

from . import scan as operators
from .compilation import traced


def forward_mode() -> bool:
    """Whether forward mode is active, plain or that of torch.func.jvp."""
    return forward_ad._current_level >= 0


def plain() -> bool:
    """Whether no transformation is active and no forward mode."""
    return not torch._C._are_functorch_transforms_active() and not forward_mode()


def plain_or_vmap() -> bool:
    """Whether no transformation but vmap is active, and no forward mode: operators with a rule for vmap run there."""
    if plain():
        return True
    if forward_mode() or traced():  # the compiler does not trace the list of transformations (torch 2.13)
        return False
    return all(level.key() == TransformType.Vmap for level in get_interpreter_stack())


def scan(a: Tensor, drive: Tensor, x0: Tensor | None, exclusive: bool) -> tuple[Tensor, Tensor]:
    """ptd_torch.scan.scan, also under the transformations of torch.func."""
    run = _Scan.apply if torch._C._are_functorch_transforms_active() else operators.scan
    return run(a, drive, x0, exclusive)


class _Scan(Function):
    """The operator scan with its gradient."""

    forward = staticmethod(operators.scan)
    setup_context = staticmethod(operators.setup_context)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return operators.backward(ctx, *grads, adjoint=_Adjoint.apply)

    @staticmethod
    def vmap(
        info: Any, dims: tuple, a: Tensor, drive: Tensor, x0: Tensor | None, exclusive: bool
    ) -> tuple[tuple, tuple]:
        """The batch as further rows."""
        size = info.batch_size
        drive, x0 = (folded(value, dim, size) for value, dim in zip((drive, x0), dims[1:3], strict=True))
        x, final = scan(_folded_coefficients(a, dims[0], size), drive, x0, exclusive)
        x = x.unflatten(0, (size, -1))
        return (x, final.unflatten(0, (size, -1)) if exclusive else final), (0, 0 if exclusive else None)


class _Adjoint(Function):
    """The operator scan_adjoint; as outside of torch.func, it has no gradient itself."""

    forward = staticmethod(operators.scan_adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        raise RuntimeError(
            "gradients: expected a first derivative of the scan under torch.func.grad, got a second, which it does not "
            "have there; use torch.func.hessian, torch.autograd.grad with create_graph, or form='convolution'"
        )

    @staticmethod
    def vmap(
        info: Any, dims: tuple, a: Tensor, states: Tensor, grad: Tensor, grad_final: Tensor, exclusive: bool
    ) -> tuple[tuple, tuple]:
        size = info.batch_size
        rows = (folded(value, dim, size) for value, dim in zip((states, grad, grad_final), dims[1:4], strict=True))
        found = _Adjoint.apply(_folded_coefficients(a, dims[0], size), *rows, exclusive)
        return tuple(value.unflatten(0, (size, -1)) for value in found), (0, 0, 0)


def folded(value: Tensor | None, dim: int | None, size: int) -> Any:
    """The batch axis of a vmap as further rows, where there is a value."""
    if value is None:
        return None
    value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.flatten(0, 1)


def _folded_coefficients(a: Tensor, dim: int | None, size: int) -> Tensor:
    """a for the rows of folded: shared ones stay shared, one set per batch entry becomes one per group of rows."""
    if dim is None and a.ndim == 2:
        return a
    return a.movedim(dim, 0) if dim is not None and a.ndim == 3 else folded(a, dim, size)
