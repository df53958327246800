"""Which arrays' values can be looked at."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def on_host(x: mx.array) -> np.ndarray | None:
    """See ptd.arrays.on_host: the values of an array where a CPU computes and no compile or vmap traces it.

    mlx tells what is traced by refusing to evaluate it (0.32), and by nothing else.
    """
    if mx.default_device() != mx.cpu:
        return None
    x = x.astype(mx.float32) if x.dtype == mx.bfloat16 else x  # NumPy has no bfloat16
    try:
        return np.array(x)
    except ValueError:
        return None
