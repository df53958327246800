"""The ListOps task: nested MIN, MAX, MED and SM over digits (Nangia and Bowman 2018), as the Long Range Arena has it.

A root at depth 1; a node is with probability 3/4, and always at depth 10, a digit, else an operator with 2 to 10
arguments. Trees of 501 to 1999 tokens are kept, equal ones once, in the order in which they are drawn.
"""

# numba finds the types of what it compiles.
# mypy: allow-untyped-defs
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from . import randomness

#: Token numbers are positions in this list. X closes an operator's arguments.
TOKENS = (
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "[MIN",
    "[MAX",
    "[MED",
    "[SM",
    "X",
    "<pad>",
    "<unk>",
    "<eos>",
)
MIN, MAX, MED, CLOSE, PAD, EOS = 10, 11, 12, 14, 15, 17
SHORTEST, LONGEST, DEEPEST, MOST_ARGUMENTS = 501, 1999, 10, 10
ROOTS_PER_BLOCK = 20_000


class Trees(NamedTuple):
    """Kept trees: their tokens end to end, the number of tokens of each, and their values."""

    tokens: NDArray[np.uint8]
    lengths: NDArray[np.uint16]
    values: NDArray[np.uint8]


def generate(count: int, seed: int, *, workers: int = 2, report: Callable[[int, int], None] | None = None) -> Trees:
    """The first count kept trees under a seed, the same for any number of workers.

    Args:
        count: number of trees, >= 1.
        seed: of all draws, >= 0.
        workers: threads.
        report: called with (trees kept, count) as they come.

    >>> trees = generate(3, 0)
    >>> bool(np.all((trees.lengths > 500) & (trees.lengths < 2000) & (trees.values < 10)))
    True
    """
    tokens, lengths, values = [], [], []
    seen: set[bytes] = set()
    for block in _blocks(seed, workers):
        ends = np.cumsum(block.lengths, dtype=np.int64)
        for end, length, value in zip(ends, block.lengths, block.values, strict=True):
            tree = block.tokens[end - length : end]
            digest = hashlib.blake2b(tree.tobytes(), digest_size=16).digest()
            if digest not in seen and len(seen) < count:
                seen.add(digest)
                tokens.append(tree)
                lengths.append(length)
                values.append(value)
        if report:
            report(len(seen), count)
        if len(seen) == count:
            break
    return Trees(np.concatenate(tokens), np.array(lengths, np.uint16), np.array(values, np.uint8))


def parse(text: str) -> NDArray[np.uint8]:
    """Token numbers of an expression in the official files' notation, parentheses dropped.

    Raises:
        ValueError: a symbol that is no token.

    >>> [TOKENS[token] for token in parse("( ( ( [MAX 4 ) 7 ) ] )")]
    ['[MAX', '4', '7', 'X']
    """
    numbers = {token: number for number, token in enumerate(TOKENS[: CLOSE + 1])} | {"]": CLOSE}
    symbols = text.replace("(", " ").replace(")", " ").split()
    if unknown := set(symbols) - numbers.keys():
        raise ValueError(f"expression: expected ListOps tokens, got {sorted(unknown)[0]!r}; the file is another task's")
    return np.array([numbers[symbol] for symbol in symbols], np.uint8)


def _blocks(seed: int, workers: int) -> Iterator[Trees]:
    """Kept trees of the roots 0, 1, ..., in blocks, in order."""
    with ThreadPoolExecutor(workers) as pool:
        first = 0
        while True:
            starts = [(first + i) * ROOTS_PER_BLOCK for i in range(2 * workers)]
            yield from pool.map(lambda start: _block(seed, start), starts)
            first += len(starts)


def _block(seed: int, start: int) -> Trees:
    tokens = np.empty(ROOTS_PER_BLOCK // 4 * LONGEST, np.uint8)
    lengths, values = np.empty(ROOTS_PER_BLOCK, np.uint16), np.empty(ROOTS_PER_BLOCK, np.uint8)
    kept, size = _fill(seed, start, ROOTS_PER_BLOCK, tokens, lengths, values)
    return Trees(tokens[:size].copy(), lengths[:kept], values[:kept])


@njit(cache=True, nogil=True)
def _fill(seed, start, roots, tokens, lengths, values):
    """Draw roots start ... start + roots - 1 and write those that are kept; how many, and how many tokens."""
    state = np.zeros(1, np.uint64)
    kept, size = 0, 0
    for index in range(start, start + roots):
        if size + LONGEST > tokens.size:
            raise ValueError("tokens: too small for a block")
        randomness.start(state, seed, index)
        length, value = _tree(state, tokens[size : size + LONGEST])
        if length >= SHORTEST:
            lengths[kept], values[kept] = length, value
            kept, size = kept + 1, size + length
    return kept, size


@njit(cache=True, nogil=True)
def _tree(state, tokens):
    """Draw one tree: its length and value; length 0 if it outgrows tokens."""
    wanted, got, begin = np.zeros(DEEPEST, np.int64), np.zeros(DEEPEST, np.int64), np.zeros(DEEPEST, np.int64)
    arguments = np.zeros((DEEPEST, MOST_ARGUMENTS), np.int64)
    depth, n = 0, 0  # operators that are open; tokens written
    while True:
        if n == tokens.size:
            return 0, 0
        if depth + 1 < DEEPEST and randomness.uniform(state) <= 0.25:
            depth += 1
            wanted[depth], got[depth], begin[depth] = 2 + randomness.below(state, MOST_ARGUMENTS - 1), 0, n
            n += 1
            continue
        value = randomness.below(state, 10)
        tokens[n] = value
        n += 1
        while depth > 0:
            arguments[depth, got[depth]] = value
            got[depth] += 1
            if got[depth] < wanted[depth]:
                break
            if n == tokens.size:
                return 0, 0
            operator = MIN + randomness.below(state, 4)
            tokens[begin[depth]], tokens[n] = operator, CLOSE
            n += 1
            value = _value(operator, arguments[depth, : got[depth]])
            depth -= 1
        if depth == 0:
            return n, value


@njit(cache=True, nogil=True)
def _value(operator, arguments):
    """The value of one operator; the median of an even number of arguments is the mean of two, cut to an integer."""
    if operator == MIN:
        return arguments.min()
    if operator == MAX:
        return arguments.max()
    if operator == MED:
        ordered = np.sort(arguments)
        middle = ordered.size // 2
        return ordered[middle] if ordered.size % 2 else (ordered[middle - 1] + ordered[middle]) // 2
    return arguments.sum() % 10
