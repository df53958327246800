"""nn.Modules: thin owners of the leaves, which call the pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ptd import checks
from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import SequenceModel, Training, is_statistic
from ptd.module import ModuleMethods
from ptd.optimization import Optimizer


class Leaves(nn.Module):
    """Named leaves as parameters, dotted names as submodules: Lambda_re, blocks.0.layer.Lambda_re, ...

    Batch-norm statistics are buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []

    def own(self, leaves: dict[str, Tensor]) -> None:
        """Register the leaves under their dotted names."""
        for name, value in leaves.items():
            *path, last = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, Leaves())
                owner = owner.get_submodule(part)
            if is_statistic(name):
                owner.register_buffer(last, value)
            else:
                owner.register_parameter(last, nn.Parameter(value))
            owner._names.append(last)

    def named(self, prefix: str = "") -> dict[str, Tensor]:
        """The leaves by dotted name; of attributes, for a replica of nn.DataParallel has no parameters."""
        found = {prefix + name: getattr(self, name) for name in self._names}
        for name, part in self._modules.items():
            found |= part.named(f"{prefix}{name}.")
        return found


class Module(Leaves, ModuleMethods):
    """A layer or model with its parameters; calls, steps and exchanges leaves as the contract says.

    Parameters stay float32 or float64; for narrower activations run it under torch.autocast.
    """

    def __init__(self, backend: Backend, description: Layer | SequenceModel, leaves: dict[str, Tensor]):
        super().__init__()
        self.backend, self.description = backend, description
        self.own(leaves)

    @property
    def kernel_path(self) -> str:
        """What runs the kernels where the parameters are: "triton", "triton interpreter" or "torch"."""
        from .scan import kernel_path

        return kernel_path(next(self.parameters()).device)

    def forward(self, u: Tensor, **call: Any) -> Any:
        """The output on whole sequences; arguments as Layer.apply or SequenceModel.apply."""
        return self.run(u, Training(_dropout) if self.training else None, **call)

    def keep(self, statistics: dict[str, Tensor]) -> None:
        for name, value in statistics.items():
            self.get_buffer(name).copy_(value.detach())

    def arrays(self) -> dict[str, Tensor]:
        """The leaves by name."""
        return self.named()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description!r})"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        dtype = fn(next(self.parameters()).detach()[:0]).dtype
        if dtype not in (torch.float32, torch.float64):
            remedy = "keep the parameters and run under torch.autocast: eigenvalues near 1 need their digits"
            raise checks.fail("dtype", "float32 or float64 parameters", dtype, remedy)
        return super()._apply(fn, recurse)


def _dropout(x: Tensor, rate: float, over_time: bool) -> Tensor:
    """Dropout from torch's own generator; over_time ties a mask over time."""
    like = x[..., :1, :] if over_time else x
    return x * nn.functional.dropout(torch.ones_like(like), rate)


def parameter_groups(module: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """See ptd.contract.Backend; groups with params, lr and weight_decay, frozen leaves left out."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        groups.setdefault(optimizer.group(name), []).append(parameter)
    return [
        {"params": members, "lr": group.lr, "weight_decay": group.weight_decay}
        for group, members in groups.items()
        if group.lr > 0
    ]
