"""The current device: Triton's kernels and CUDA graphs run there, wherever their arguments lie."""

from __future__ import annotations

import contextlib

import torch


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which device is the current one; what the compiler traces sees to that itself."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
