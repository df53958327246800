"""The few array operations the standard lacks or that frameworks disagree on, for any array namespace."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .pairs import Pair

Array = Any

__all__ = [
    "Array",
    "arange",
    "as_complex",
    "as_index",
    "as_pair",
    "as_planes",
    "astype",
    "erf",
    "eye",
    "from_pair",
    "from_planes",
    "imag",
    "linear",
    "matmul",
    "namespace",
    "on_host",
    "product",
    "real",
    "scale",
    "thin_product",
    "zeros",
]

#: Namespaces whose complex numbers are Pairs. torch: its compiler emits no complex code, and complex models export to
#: no other runtime (2.13). A namespace of a backend's own says so by an attribute complex_as_pairs.
PAIRED = ("array_api_compat.torch",)

#: Where the error function lies beside a namespace that has none of its own; scipy's is of up to float64.
SPECIAL = {"jax.numpy": "jax.scipy.special", "array_api_compat.numpy": "scipy.special"}

#: The namespace of an array type and of types derived from it, where a backend knows it better or sooner than
#: array_api_compat.
NAMESPACES: dict[type, Any] = {}


def namespace(*arrays: Array) -> Any:
    """The array-API namespace of arrays of one framework."""
    if isinstance(arrays[0], Pair):
        return arrays[0].__array_namespace__()
    known = _registered(arrays[0])
    return array_namespace(*arrays) if known is None else known


def on_host(x: Any) -> np.ndarray | None:
    """The values of a framework's array where they can be had at once, else None; a namespace's on_host decides.

    A backend's own looks where that waits for no other device, and not at what is being traced: there are no values.
    """
    own = getattr(_registered(x), "on_host", None)
    return None if own is None else own(x)


def as_index(x: Array) -> Array:
    """Integers as take_along_axis wants them: torch indexes by 64 bits only, others by what they have."""
    xp = namespace(x)
    return xp.astype(x, xp.int64) if xp.__name__.endswith("torch") else x


def as_complex(re: Array, im: Array) -> Array:
    """The complex array re + i im from two real ones of one dtype; a Pair where the framework's own would not do."""
    xp = namespace(re, im)
    if getattr(xp, "complex_as_pairs", xp.__name__ in PAIRED):
        return Pair(re, im, xp)
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
    return namespace(real(x)).stack([real(x), imag(x)], axis=-1)


def from_planes(planes: Array) -> Array:
    """The complex array (..., M) stored as planes (..., 2, M) of real and imaginary parts."""
    return as_complex(planes[..., 0, :], planes[..., 1, :])


def as_planes(x: Array) -> Array:
    """The real array (..., 2, M) of the real and imaginary parts of complex x (..., M)."""
    return namespace(real(x)).stack([real(x), imag(x)], axis=-2)


def arange(stop: int, like: Array) -> Array:
    """0 ... stop - 1 in the dtype and on the device of a real or integer array."""
    return namespace(like).arange(stop, dtype=like.dtype, device=_device(like))


def erf(x: Array) -> Array:
    """The error function of a real array, 2/sqrt(pi) int_0^x e^(-t^2) dt; the standard has none.

    >>> import numpy as np
    >>> erf(np.asarray([0.0, 1.0])).round(6).tolist()
    [0.0, 0.842701]
    """
    xp = namespace(x)
    if hasattr(xp, "erf"):
        return xp.erf(x)
    if xp.__name__ in SPECIAL and x.dtype != np.longdouble:
        return importlib.import_module(SPECIAL[xp.__name__]).erf(x)
    return _erf_by_series(x)


def _erf_by_series(x: Array) -> Array:
    """erf(x) = 2/sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1)/(2n+1)!!, in which nothing cancels (DLMF 7.6.2).

    Beyond 7 it is 1 within 5e-23, and up to there 200 terms leave less.
    """
    xp = namespace(x)
    x = xp.clip(x, -7.0, 7.0)
    term = total = x
    for n in range(1, 200):
        term = term * (x * x) * (2.0 / (2 * n + 1))
        total = total + term
    return total * xp.exp(-x * x) * (2.0 / math.sqrt(math.pi))


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros in the dtype and on the device of a real array."""
    return namespace(like).zeros(shape, dtype=like.dtype, device=_device(like))


def eye(n: int, like: Array) -> Array:
    """The identity (n, n) in the dtype and on the device of an array."""
    if isinstance(like, Pair):
        one = eye(n, like.re)
        return as_complex(one, like.xp.zeros_like(one))
    return namespace(like).eye(n, dtype=like.dtype, device=_device(like))


def scale(z: Array, r: Array) -> Array:
    """Complex z times real r, broadcast. Operators of a Pair take Pairs and numbers only."""
    return Pair(z.re * r, z.im * r, z.xp) if isinstance(z, Pair) else z * r


def matmul(x: Array, y: Array) -> Array:
    """The matrix product of two complex arrays."""
    return x.matmul(y) if isinstance(x, Pair) else x @ y


def product(x: Array, y: Array) -> Array:
    """The matrix product of two arrays in their own precision, whatever faster products are allowed elsewhere.

    Powers of a matrix need it. A namespace whose @ may be told to round its factors has an exact_matmul.
    """
    if isinstance(x, Pair):
        return x.matmul(y, product)
    own = getattr(namespace(x), "exact_matmul", None)
    return x @ y if own is None else own(x, y)


def thin_product(x: Array, y: Array) -> Array:
    """x (..., n, r) times y (..., r, m) for a small r, as sums: neither rounded as faster products are, nor a launch.

    >>> import numpy as np
    >>> thin_product(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    return namespace(x).sum(x[..., :, :, None] * y[..., None, :, :], axis=-2)


def linear(x: Array, weight: Array) -> Array:
    """x (..., n) times the transpose of weight (m, n), both real: (..., m). A namespace may have a faster one."""
    own = getattr(namespace(x), "linear", None)
    return x @ weight.T if own is None else own(x, weight)


def _registered(x: Any) -> Any:
    """What NAMESPACES has for x, or None."""
    kind = type(x)
    return NAMESPACES.get(kind) or next((NAMESPACES[base] for base in kind.__mro__ if base in NAMESPACES), None)


def _device(x: Array) -> Any:
    return getattr(x, "device", None) if type(x) in NAMESPACES else device(x)


def astype(x: Array, like: Array) -> Array:
    """x in the dtype of like, both real."""
    return x if x.dtype == like.dtype else namespace(x).astype(x, like.dtype)
