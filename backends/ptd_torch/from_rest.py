"""The recurrence from rest in all directions, and its gradients: tile by tile, or as a walk through time."""

from __future__ import annotations

from torch import Tensor

from .scan import kernel_path, walk


def states_from_rest(a: Tensor, drive: Tensor, directions: int, *, tiled: bool, exclusive: bool = False) -> Tensor:
    """The states (R, n, D, 2, M) of drive (R, n, D, 2, M), or (R, n, 1, 2, M) for all directions."""
    if tiled and kernel_path(drive.device) != "torch":
        from .triton import states as kernels

        return kernels.states(a.contiguous(), drive.contiguous(), directions, exclusive=exclusive)
    return walk(a, drive.expand(-1, -1, directions, -1, -1), None, exclusive=exclusive)[0]


def drive_gradient(
    a: Tensor, grad: Tensor, states: Tensor, *, tiled: bool, shared: bool = False, exclusive: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradients by the drive, of all directions together if shared, and by a, from that by the states."""
    if tiled and kernel_path(grad.device) != "torch":
        from .triton import states as kernels

        return kernels.adjoint(a.contiguous(), grad.contiguous(), states, shared=shared, exclusive=exclusive)
    drive, _, grad_a = walk(a, grad, None, exclusive=exclusive, before=states)
    return drive.sum(2, keepdim=True) if shared else drive, grad_a.sum((0, 1))
