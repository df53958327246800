"""How stored numbers become model input: data sets stay small integers until a batch is read."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from . import checks
from .arrays import Array, namespace


@dataclass(frozen=True)
class Input:
    """x * scale + shift per input feature, for integers that stand for real samples (8-bit pixels, say).

    Attributes:
        scale: one factor per input feature, finite; a single one serves all.
        shift: one offset per input feature, finite, in units of the model's input.

    >>> import numpy as np
    >>> Input((2 / 255,), (-1.0,))(np.array([0, 255], np.uint8), np.float32).tolist()
    [[-1.0], [1.0]]
    """

    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            value = getattr(self, name)
            if not isinstance(value, Iterable) or isinstance(value, str):
                raise checks.fail(name, "a tuple of numbers, one per input feature", repr(value), f"pass ({value},)")
            numbers = tuple(value)
            if not numbers:
                raise checks.fail(name, "one number, or one per input feature", "none")
            for number in numbers:
                checks.number(name, number, -sys.float_info.max, math.inf, "finite numbers")
            object.__setattr__(self, name, tuple(map(float, numbers)))

    def check(self, d_input: int) -> None:
        """Raise ValueError unless scale and shift have one number, or one for each of d_input features."""
        for name in ("scale", "shift"):
            if len(getattr(self, name)) not in (1, d_input):
                wanted = f"1 number or d_input={d_input}, one per input feature"
                raise checks.fail(f"input.{name}", wanted, len(getattr(self, name)))

    def __call__(self, x: Array, dtype: object, d_input: int = 1) -> Array:
        """Integers (..., L) where d_input is 1, else (..., L, d_input), as real (..., L, d_input) of dtype."""
        xp = namespace(x)
        x = xp.astype(x[..., None] if d_input == 1 else x, dtype)
        scale, shift = self.scale, self.shift
        if len(scale) == len(shift) == 1:
            return x * scale[0] + shift[0]
        # Feature by feature with plain numbers: no array has to be made on x's device.
        per_feature = [x[..., i] * scale[i % len(scale)] + shift[i % len(shift)] for i in range(d_input)]
        return xp.stack(per_feature, axis=-1)
