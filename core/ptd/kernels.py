"""The kernels a layer is composed of: a table of functions, each of which a backend may replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import convolution, recurrence
from .arrays import Array


@dataclass(frozen=True)
class Kernels:
    """The performance-critical functions. The defaults are the definitions, in any array namespace.

    A backend passes its own table: ``Kernels(scan=my_scan)`` keeps the definitions for everything else.

    >>> Kernels().scan is recurrence.scan
    True
    """

    scan: Callable[..., Array] = recurrence.scan
    scan_low_rank: Callable[..., Array] = recurrence.scan_low_rank
    vandermonde: Callable[..., Array] = convolution.vandermonde
    cauchy: Callable[..., Array] = convolution.cauchy
    causal_convolution: Callable[..., Array] = convolution.causal_convolution
    mixing_convolution: Callable[..., Array] = convolution.mixing_convolution


PORTABLE = Kernels()
