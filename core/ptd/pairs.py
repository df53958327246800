"""Complex numbers as pairs of real arrays, for frameworks in which complex arithmetic is slow, wrong or not compiled.

A Pair is an array to the code of core: it has operators, indexing, shape and dtype, and its __array_namespace__ holds
the functions core calls. So every formula of core runs in real arithmetic where it has to, unchanged. Operators take
Pairs and numbers; arrays.scale multiplies by a real array, arrays.matmul by a matrix: a tracing compiler (torch 2.13)
takes any operation between a tensor and another object for one of its own, and knows no other object's matrix product.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

Array = Any


class Pair:
    """re + i im, two real arrays of one shape and dtype; xp is their namespace."""

    def __init__(self, re: Array, im: Array, xp: Any):
        self.re, self.im, self.xp = re, im, xp

    def __array_namespace__(self, api_version: str | None = None) -> PairNamespace:
        return PairNamespace(self.xp)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of both parts."""
        return self.re.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.re.ndim

    @property
    def dtype(self) -> Any:
        """The framework's complex dtype of this precision."""
        return self.xp.result_type(self.re.dtype, self.xp.complex64)

    @property
    def T(self) -> Pair:
        """The transpose of a matrix."""
        return self.map(lambda part: part.T)

    def map(self, function: Callable[[Array], Array]) -> Pair:
        """Both parts under a real-linear function that does not mix them."""
        return Pair(function(self.re), function(self.im), self.xp)

    def __getitem__(self, key: Any) -> Pair:
        return self.map(lambda part: part[key])

    def __neg__(self) -> Pair:
        return self.map(lambda part: -part)

    def __add__(self, other: Any) -> Pair:
        if isinstance(other, Pair):
            return Pair(self.re + other.re, self.im + other.im, self.xp)
        return Pair(self.re + other, self.im, self.xp)

    def __sub__(self, other: Any) -> Pair:
        return self + (-other)

    def __mul__(self, other: Any) -> Pair:
        if isinstance(other, Pair):
            re = self.re * other.re - self.im * other.im
            return Pair(re, self.re * other.im + self.im * other.re, self.xp)
        return self.map(lambda part: part * other)

    def __truediv__(self, other: Any) -> Pair:
        if isinstance(other, Pair):
            size = other.re * other.re + other.im * other.im
            return (self * other.conj()).map(lambda part: part / size)
        return self.map(lambda part: part / other)

    def matmul(self, other: Pair, product: Callable[[Any, Any], Any] = operator.matmul) -> Pair:
        """The matrix product, from products of real matrices."""
        re = product(self.re, other.re) - product(self.im, other.im)
        return Pair(re, product(self.re, other.im) + product(self.im, other.re), self.xp)

    def __radd__(self, other: Any) -> Pair:
        return self + other

    def __rsub__(self, other: Any) -> Pair:
        return -self + other

    def __rmul__(self, other: Any) -> Pair:
        return self * other

    def __rtruediv__(self, other: Any) -> Pair:
        size = self.re * self.re + self.im * self.im
        return self.conj().map(lambda part: other * part / size)

    def conj(self) -> Pair:
        """re - i im."""
        return Pair(self.re, -self.im, self.xp)


class PairNamespace:
    """The array functions core calls on complex arrays, on Pairs; all else is the framework's own."""

    #: Functions that act on both parts alike, with the array as first argument.
    PARTWISE = (
        "sum",
        "flip",
        "moveaxis",
        "permute_dims",
        "reshape",
        "broadcast_to",
        "expand_dims",
        "matrix_transpose",
        "take_along_axis",
        "zeros_like",
    )

    def __init__(self, xp: Any):
        self._xp = xp
        self.fft = PairFourier(xp)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PairNamespace) and other._xp is self._xp

    def __hash__(self) -> int:
        return hash((PairNamespace, id(self._xp)))

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._xp, name)
        if name not in self.PARTWISE:
            return function
        return lambda x, *args, **kwargs: _partwise(function, x, *args, **kwargs)

    def real(self, x: Array) -> Array:
        """The real part."""
        return x.re if isinstance(x, Pair) else self._xp.real(x)

    def imag(self, x: Array) -> Array:
        """The imaginary part."""
        return x.im if isinstance(x, Pair) else self._xp.imag(x)

    def conj(self, x: Array) -> Array:
        """The complex conjugate; a real array is its own."""
        return x.conj() if isinstance(x, Pair) else x

    def abs(self, x: Pair) -> Array:
        """The modulus."""
        return self._xp.sqrt(x.re * x.re + x.im * x.im)

    def exp(self, x: Array) -> Array:
        """e^x."""
        if not isinstance(x, Pair):
            return self._xp.exp(x)
        size = self._xp.exp(x.re)
        return Pair(size * self._xp.cos(x.im), size * self._xp.sin(x.im), self._xp)

    def astype(self, x: Array, dtype: Any) -> Pair:
        """A real array as a Pair with zero imaginary part; a Pair as it is, since precisions are never mixed."""
        return x if isinstance(x, Pair) else Pair(x, self._xp.zeros_like(x), self._xp)

    def ones_like(self, x: Array) -> Array:
        """Ones of x's shape and precision."""
        if not isinstance(x, Pair):
            return self._xp.ones_like(x)
        return Pair(self._xp.ones_like(x.re), self._xp.zeros_like(x.im), self._xp)

    def full_like(self, x: Array, value: float) -> Array:
        """A real value everywhere, in x's shape and precision."""
        if not isinstance(x, Pair):
            return self._xp.full_like(x, value)
        return Pair(self._xp.full_like(x.re, value), self._xp.zeros_like(x.im), self._xp)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where the condition holds, else y."""
        if not isinstance(x, Pair):
            return self._xp.where(condition, x, y)
        re, im = (self._xp.where(condition, *parts) for parts in ((x.re, y.re), (x.im, y.im)))
        return Pair(re, im, self._xp)

    def concat(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        """Arrays, all real or all Pairs, joined along an axis."""
        return self._joined(self._xp.concat, arrays, axis)

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        """Arrays, all real or all Pairs, joined along a new axis."""
        return self._joined(self._xp.stack, arrays, axis)

    def _joined(self, join: Callable, arrays: Sequence[Array], axis: int) -> Array:
        arrays = list(arrays)
        if not isinstance(arrays[0], Pair):
            return join(arrays, axis=axis)
        return Pair(join([x.re for x in arrays], axis=axis), join([x.im for x in arrays], axis=axis), self._xp)


class PairFourier:
    """The framework's transforms, which know its own complex numbers only."""

    def __init__(self, xp: Any):
        self._xp = xp

    def irfft(self, x: Pair, n: int, axis: int = -1) -> Array:
        """The real inverse transform of half a spectrum, (..., n)."""
        return self._xp.fft.irfft(self._native(x), n=n, axis=axis)

    def ifft(self, x: Pair, axis: int = -1) -> Array:
        """The inverse transform, in the framework's complex numbers."""
        return self._xp.fft.ifft(self._native(x), axis=axis)

    def _native(self, x: Pair) -> Array:
        # torch has one; its compiler (2.11) fails on gradients through the other form.
        own = getattr(self._xp, "complex", None)
        if own is not None:
            return own(x.re, x.im)
        return self._xp.astype(x.re, x.dtype) + self._xp.astype(x.im, x.dtype) * 1j


def _partwise(function: Callable, x: Array, *args: Any, **kwargs: Any) -> Array:
    if isinstance(x, Pair):
        return x.map(lambda part: function(part, *args, **kwargs))
    return function(x, *args, **kwargs)
