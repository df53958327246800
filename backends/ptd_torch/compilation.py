"""torch.compile with a budget of recompilations of its own for each function."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch


def compiled(function: Callable) -> Callable:
    """function as one graph for each shape.

    Recompilations are counted per code object (torch 2.13), and one closure compiled for many layers shares one: a
    copy of the code gives each its own count.
    """
    if isinstance(function, types.MethodType):
        return torch.compile(
            types.MethodType(_copy(function.__func__), function.__self__), fullgraph=True, dynamic=False
        )
    fresh = _copy(function) if isinstance(function, types.FunctionType) else function
    return torch.compile(fresh, fullgraph=True, dynamic=False)


def _copy(function: types.FunctionType) -> types.FunctionType:
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
