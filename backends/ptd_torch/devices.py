"""Devices by name, and the current one: Triton's kernels and CUDA graphs run there, wherever their arguments lie."""

from __future__ import annotations

import contextlib

import torch

from ptd import checks

from .compilation import traced


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which device is the current one; what the compiler traces sees to that itself."""
    if device.type != "cuda" or traced():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def found(name: str | torch.device) -> torch.device:
    """A device by name, "cpu" or "cuda:1"; ValueError if torch finds none of that name here."""
    count = torch.cuda.device_count()
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type != "cpu" and not (device.type == "cuda" and (device.index or 0) < count):
        remedy = f"torch {torch.__version__} finds {count} GPUs here"
        raise checks.fail("device", "'cpu', or a GPU as 'cuda:0'", repr(str(name)), remedy)
    return device
