"""The few array operations the standard lacks or that frameworks disagree on, for any array namespace."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace as namespace

Array = Any

__all__ = ["Array", "as_complex", "as_pair", "from_pair", "imag", "namespace", "real"]


def as_complex(re: Array, im: Array) -> Array:
    """The complex array re + i im from two real ones of one dtype."""
    xp = namespace(re, im)
    dtype = xp.result_type(re.dtype, xp.complex64)
    return xp.astype(re, dtype) + xp.astype(im, dtype) * 1j


def real(x: Array) -> Array:
    """The real part of a complex array."""
    return namespace(x).real(x)


def imag(x: Array) -> Array:
    """The imaginary part of a complex array."""
    return namespace(x).imag(x)


def from_pair(pair: Array) -> Array:
    """The complex array (...,) stored as (re, im) along the last axis of pair (..., 2)."""
    return as_complex(pair[..., 0], pair[..., 1])


def as_pair(x: Array) -> Array:
    """The real array (..., 2) of (re, im) of complex x (...,)."""
    return namespace(x).stack([real(x), imag(x)], axis=-1)
