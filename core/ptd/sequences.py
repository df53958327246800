"""Padding, packing and time reversal of sequences (..., L, H): sequence axis -2, feature axis -1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import checks
from .arrays import Array, arange, as_index, namespace
from .checks import fail


def valid(lengths: Array, L: int) -> Array:
    """Boolean (..., L): True where k < lengths.

    >>> import numpy as np
    >>> valid(np.array([1, 2]), 2).tolist()
    [[True, False], [True, True]]
    """
    return arange(L, like=lengths) < lengths[..., None]


def within(lengths: Array, L: int) -> Array:
    """Lengths as integers in 0 ... L, whatever they were, of a type that has L: nothing past an end is read for them.

    Values on an accelerator, or being traced, cannot be refused.

    >>> import numpy as np
    >>> within(np.array([-1, 2, 9]), 3).tolist()
    [0, 2, 3]
    """
    xp = namespace(lengths)
    if str(lengths.dtype).endswith(("int8", "int16")):
        lengths = xp.astype(lengths, xp.int32)
    return xp.clip(lengths, 0, L)


def mask(x: Array, lengths: Array | None) -> Array:
    """x (..., L, H) with zeros at k >= lengths."""
    if lengths is None:
        return x
    xp = namespace(x)
    return xp.where(valid(lengths, x.shape[-2])[..., None], x, xp.zeros_like(x))


def flip(x: Array, lengths: Array | None, axis: int = -2) -> Array:
    """x reversed in time within each length; padding stays where it is. axis is -2 for (..., L, H), -1 for (..., L)."""
    xp = namespace(x)
    if lengths is None:
        return xp.flip(x, axis=axis)
    L = x.shape[axis]
    k = arange(L, like=lengths)
    source = xp.where(valid(lengths, L), lengths[..., None] - 1 - k, k)
    return _along(x, source, axis)


@dataclass(frozen=True)
class Signal:
    """One input with what says how time runs over it.

    Attributes:
        u: real (..., L, H), zero at k >= lengths.
        lengths: integer (...), or None if every sample is valid.
        resets: bool (..., L), or None.
        step_scale: real, 0-d or (..., L), or None for 1.
        given: u with whatever it was given in its padding, for what does not read that; None for u.
    """

    u: Array
    lengths: Array | None = None
    resets: Array | None = None
    step_scale: Array | None = None
    given: Array | None = None

    @property
    def padded(self) -> Array:
        """u, with anything at k >= lengths: with nothing left to zero there, a compiler need not."""
        return self.u if self.given is None else self.given

    @property
    def per_sample(self) -> bool:
        """Whether each sample has its own step size."""
        return self.step_scale is not None and self.step_scale.ndim > 0

    def reversed(self) -> Signal:
        """The same signal from right to left, padding in place; a split before k is one before its left neighbour."""
        resets, scale = self.resets, self.step_scale
        if resets is not None:
            xp = namespace(resets)
            if self.lengths is not None:
                resets = resets & valid(self.lengths, resets.shape[-1])
            resets = xp.concat([resets[..., 1:], xp.zeros_like(resets[..., :1])], axis=-1)
            resets = flip(resets, self.lengths, axis=-1)
        if self.per_sample:
            scale = flip(scale, self.lengths, axis=-1)
        return Signal(flip(self.u, self.lengths), self.lengths, resets, scale)


def last(x: Array, lengths: Array | None, before: Array) -> Array:
    """x (..., L, M) at the last valid k; before (..., M) where a length is 0."""
    if lengths is None:
        return x[..., -1, :]
    xp = namespace(x)
    index = xp.where(lengths > 0, lengths - 1, xp.zeros_like(lengths))
    end = at(x, index)
    return xp.where(lengths[..., None] > 0, end, before)


def at(x: Array, index: Array) -> Array:
    """x (..., L, M) at one index (...) per sequence: (..., M)."""
    return _along(x, index[..., None], -2)[..., 0, :]


def pack(sequences: Sequence[Array]) -> tuple[Array, Array]:
    """Sequences (L_i, H) laid end to end, with the reset flags that keep them apart.

    Returns:
        u (sum L_i, H) and resets, bool (sum L_i,): True at each first sample.

    Raises:
        ValueError: no sequence, widths differ, or an array is not (L_i, H).

    >>> import numpy as np
    >>> pack([np.zeros((2, 1)), np.ones((1, 1))])[1].tolist()
    [True, False, True]
    """
    sequences = list(sequences)
    if not sequences:
        raise fail("sequences", "at least one array (L_i, H)", "none")
    for u in sequences:
        checks.array("sequences", u)
    shapes = [tuple(u.shape) for u in sequences]
    if len({shape[1:] for shape in shapes}) > 1 or len(shapes[0]) != 2:
        raise fail("sequences", "arrays (L_i, H) of one width H", f"shapes {shapes}")
    xp = namespace(*sequences)
    flags = [xp.arange(u.shape[0]) == 0 for u in sequences]
    return xp.concat(list(sequences), axis=0), xp.concat(flags, axis=0)


def unpack(packed: Array, lengths: Sequence[int]) -> list[Array]:
    """The pieces (L_i, H) of packed (sum L_i, H).

    Raises:
        ValueError: a length is negative or no integer, or they do not add up.
    """
    if any(isinstance(L, bool) or not isinstance(L, (int, np.integer)) or L < 0 for L in lengths):
        raise fail("lengths", "integers >= 0", list(lengths), "pass the lengths of the sequences that were packed")
    lengths = [int(L) for L in lengths]  # sums of 8-bit numbers would wrap
    if sum(lengths) != packed.shape[0]:
        raise fail("lengths", f"a sum of {packed.shape[0]}, the packed length", sum(lengths))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [packed[start : start + L, ...] for start, L in zip(starts, lengths, strict=True)]


def _along(x: Array, index: Array, axis: int) -> Array:
    """x taken at index (..., L') along axis, the batch axes of both broadcast."""
    xp = namespace(x)
    batch = x.shape[:axis]
    index = xp.broadcast_to(index, (*batch, index.shape[-1]))
    if axis == -2:
        index = xp.broadcast_to(index[..., None], (*index.shape, x.shape[-1]))
    return xp.take_along_axis(x, as_index(index), axis=axis)
