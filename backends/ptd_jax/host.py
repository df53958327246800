"""Which arrays' values can be looked at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def on_host(x: jax.Array) -> np.ndarray | None:
    """See ptd.arrays.on_host: the values of an array on this process's CPU that is not traced."""
    if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
        return None
    if next(iter(x.devices())).platform != "cpu":
        return None
    host = np.asarray(x)
    # to NumPy bfloat16 is no number
    return host.astype(np.float32) if host.dtype.kind == "V" and jnp.issubdtype(x.dtype, jnp.floating) else host
