"""mlx.core as the array namespace of core: what core calls, with what mlx gets wrong set right.

mlx has the standard's names for all of it. Complex numbers are pairs of real arrays: mlx 0.32 differentiates complex
powers, cumprod, logcumsumexp and sign wrongly, has no complex128, and multiplies complex arrays 14 times slower
than NumPy. tests/test_mlx_guards.py fails when one of these facts changes.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from .host import on_host
from .streams import linear

Array = Any

__all__ = [
    "arange",
    "asarray",
    "complex_as_pairs",
    "conj",
    "exp",
    "eye",
    "imag",
    "linear",
    "on_host",
    "real",
    "take",
    "zeros",
]

#: Tells ptd.arrays that complex arrays are ptd.pairs.Pair.
complex_as_pairs = True

#: ln 2 in two parts. The first has 15 significant bits, so that its products with integers below 2^9 are exact.
_LN2_HIGH = 0x58B9 / 2**15
_LN2_LOW = math.log(2.0) - _LN2_HIGH


def exp(x: Array) -> Array:
    """e^x = 2^n e^r with r = x - n ln 2, |r| <= ln(2)/2.

    mlx's own float32 exponential on a CPU is off by eps (1 + |x|)/2 relatively, 10 eps for a step of 1e-7: it rounds
    x/ln 2. Within |r| <= ln(2)/2 it is off by 0.8 eps there, and by 1 eps on an NVIDIA GPU; rounding r adds eps/8.
    """
    n = mx.stop_gradient(mx.clip(mx.round(x * (1.0 / math.log(2.0))), -126, 127))
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    # 2^n from its bits: a power function need not be exact.
    return mx.exp(r) * mx.view((n.astype(mx.int32) + 127) << 23, mx.float32)


def real(x: Array) -> Array:
    """The real part: x itself, if it is real."""
    return mx.real(x) if x.dtype == mx.complex64 else x


def imag(x: Array) -> Array:
    """The imaginary part."""
    return mx.imag(x) if x.dtype == mx.complex64 else mx.zeros_like(x)


def conj(x: Array) -> Array:
    """The complex conjugate: x itself, if it is real."""
    return mx.conj(x) if x.dtype == mx.complex64 else x


def asarray(x: Any, dtype: Any = None) -> Array:
    """A copy of a host value, never a view of its memory; an mlx array as it is."""
    x = x if isinstance(x, mx.array) else mx.array(np.asarray(x, order="C"))
    return x if dtype is None else x.astype(dtype)


def arange(stop: int, dtype: Any = None, device: None = None) -> Array:
    """0 ... stop - 1. mlx's arrays have no device: its memory is one."""
    return mx.arange(stop, dtype=dtype)


def eye(n: int, dtype: Any = None, device: None = None) -> Array:
    """The identity (n, n)."""
    return mx.eye(n, dtype=dtype)


def zeros(shape: tuple[int, ...], dtype: Any = None, device: None = None) -> Array:
    """Zeros."""
    return mx.zeros(shape, dtype=dtype)


def take(x: Array, indices: Array, axis: int) -> Array:
    """x at indices along an axis, at the nearest place for one that x has not: mlx reads whatever lies there."""
    return mx.take(x, mx.clip(indices, 0, x.shape[axis] - 1), axis=axis)


def __getattr__(name: str) -> Any:
    """All else is mlx's own."""
    return getattr(mx, name)
