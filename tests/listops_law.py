"""The exact law of ListOps' trees, by generating functions: nothing is drawn and no tree is built.

A node's law is an array (value, length). Its transform over length turns the joining of arguments into products, so
chances that all arguments are at most, or at least, a value are powers; sums modulo 10 are powers of a transform over
values; medians follow from how many arguments are at most a value.
"""

from __future__ import annotations

from math import comb

import numpy as np

#: Lengths 0 ... 1999 matter. Scaling length l by DAMPING^l makes what wraps around the transform 1e-12 of itself.
LENGTHS, WRAP = 2000, 4096
DAMPING = 10 ** (-12 / WRAP)


def law() -> np.ndarray:
    """Probability that a root is an operator (MIN, MAX, MED, SM) with a value and a length: (4, 10, 2000)."""
    scale = DAMPING ** np.arange(LENGTHS)
    node = np.zeros((10, LENGTHS))  # at depth 10: a digit
    node[:, 1] = 0.1
    for _ in range(9):
        transforms = sum(_operators(np.fft.rfft(node * scale, WRAP), count) for count in range(2, 11)) / 36
        joined = np.zeros((4, 10, LENGTHS))
        joined[..., 2:] = 0.25 * (np.fft.irfft(transforms, WRAP)[..., :LENGTHS] / scale)[..., :-2]
        node = joined.sum(0)
        node[:, 1] += 0.075
    return joined


def _operators(node: np.ndarray, count: int) -> np.ndarray:
    """Transforms of the values of MIN, MAX, MED and SM of count independent arguments: (4, 10, frequencies)."""
    none = np.zeros_like(node[:1])
    at_most, at_least = np.cumsum(node, 0), np.cumsum(node[::-1], 0)[::-1]
    above = np.concatenate([at_least[1:], none])
    half = count // 2
    # The middle one, or the lower of two, is at most v where at least half of all are.
    middle = (count + 1) // 2
    below = sum(comb(count, j) * at_most**j * above ** (count - j) for j in range(middle, count + 1))
    median = np.diff(below, axis=0, prepend=none)
    if count % 2 == 0:
        # Both middle ones, a < b, count as their mean: half of all are at most a, the other half at least b.
        a, b = np.triu_indices(10, 1)
        both = np.zeros((11, 11, node.shape[1]), complex)
        both[a + 1, b] = comb(count, half) * at_most[a] ** half * at_least[b] ** half
        pairs = -np.diff(np.diff(both, axis=0), axis=1)[a, b]
        np.subtract.at(median, a, pairs)
        np.add.at(median, (a + b) // 2, pairs)
    turns = np.exp(2j * np.pi * np.outer(np.arange(10), np.arange(10)) / 10)
    remainders = turns.conj().T @ (turns @ node) ** count / 10
    lowest = -np.diff(at_least**count, axis=0, append=none)
    highest = np.diff(at_most**count, axis=0, prepend=none)
    return np.stack([lowest, highest, median, remainders])
