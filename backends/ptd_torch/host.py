"""Which tensors' values can be looked at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from .compilation import traced


def on_host(x: Tensor) -> np.ndarray | None:
    """See ptd.arrays.on_host: the values of a tensor on a CPU that is neither traced nor a stand-in for another."""
    if traced() or type(x) not in (Tensor, Parameter) or not x.is_cpu:
        return None
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() or torch.jit.is_tracing():
        return None
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # NumPy has no bfloat16
