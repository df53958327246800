"""The current device: Triton's kernels and CUDA graphs run there, wherever their arguments lie."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

Owner, Result, Call = TypeVar("Owner"), TypeVar("Result"), ParamSpec("Call")


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which device is the current one; what the compiler traces sees to that itself."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def on_own_device(
    method: Callable[Concatenate[Owner, Call], Result],
) -> Callable[Concatenate[Owner, Call], Result]:
    """A method that runs where its owner's torch_device is the current one."""

    @functools.wraps(method)
    def run(owner: Any, *args: Call.args, **call: Call.kwargs) -> Result:
        with current(owner.torch_device):
            return method(owner, *args, **call)

    return run
