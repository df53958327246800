"""torch.compile with a budget of recompilations of its own for each function, and whether it reads a call."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable, *, repeatable: bool = False) -> Callable:
    """function as one graph for each shape.

    Recompilations are counted per code object (torch 2.13), and one closure compiled for many layers shares one: a
    copy of the code gives each its own count.

    Args:
        function: of tensors.
        repeatable: sums are to be rounded alike in every process. Otherwise the compiler chooses between kernels by
            timing them on the device, and so by what else runs there.
    """
    options = _repeatable() if repeatable else None
    if isinstance(function, types.MethodType):
        fresh: Callable = types.MethodType(_copy(function.__func__), function.__self__)
    else:
        fresh = _copy(function) if isinstance(function, types.FunctionType) else function
    return torch.compile(fresh, fullgraph=True, dynamic=False, options=options)


def traced() -> bool:
    """Whether operations of this thread are recorded rather than run, by torch's compiler or an exporter.

    torch.compiler.is_compiling() is true in every thread while one compiles (torch 2.13). What the compiler reads it
    knows by is_dynamo_compiling(); where it, or an exporter, runs Python, a mode of this thread records.
    """
    if torch.compiler.is_dynamo_compiling():
        return True
    return torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0


def _repeatable() -> dict[str, Any] | None:
    """The compiler's options for that; an older torch has none."""
    from torch._inductor import config

    return {"deterministic": True} if hasattr(config, "deterministic") else None


def _copy(function: Any) -> types.FunctionType:
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
