"""Random numbers of the generated tasks: one stream per sample, so that no result depends on workers or blocks.

SplitMix64 (Steele, Lea and Flood 2014), compiled, with its state in an array of one element.
"""

# numba finds the types of what it compiles.
# mypy: allow-untyped-defs
from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)


@njit(cache=True, nogil=True, inline="always")
def _mixed(z):
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@njit(cache=True, nogil=True)
def start(state, seed, index):
    """Begin the stream of sample index under a seed: state is uint64 (1,)."""
    state[0] = _mixed(_mixed(np.uint64(seed) + _GOLDEN) + np.uint64(index) * _GOLDEN)


@njit(cache=True, nogil=True)
def uniform(state):
    """The next number of the stream, uniform in [0, 1)."""
    state[0] = state[0] + _GOLDEN
    return np.float64(_mixed(state[0]) >> _11) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def below(state, n):
    """The next number of the stream, uniform over 0 ... n - 1."""
    return np.int64(uniform(state) * n)
