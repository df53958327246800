"""The diagonal recurrence on a CPU: a tree of element-wise products on (re, im) planes.

mlx has no scan, a loop over the samples costs a millisecond per sample with its gradient, and recursive doubling makes
log2(L) passes over everything. The tree makes one pass over groups of RADIX samples, then over groups of groups.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import mlx.core as mx

Planes = tuple[mx.array, mx.array]

#: Samples per group: more of them save passes over memory and cost small operations.
RADIX = 4


def run(
    a: Planes,
    b: Planes,
    start: Planes | None = None,
    resets: mx.array | None = None,
    *,
    reverse: bool = False,
    adjoint: bool = False,
) -> Planes:
    """x_k = a_k x_{k-1} + b_k along axis 1 of (rows, L, M).

    Args:
        a: (M,), or (rows, L, M) per step.
        b: (rows, L, M).
        start: (rows, M), the state before the first step taken; zero if None.
        resets: bool (rows, L); where True, the state before counts as zero.
        reverse: from right to left, x_k = a_k x_{k+1} + b_k.
        adjoint: with the conjugate of the coefficient visited before in place of a_k, the recurrence of gradients; it
            has no start.
    """
    if resets is not None:
        a = (mx.where(resets[..., None], 0.0, a[0]), mx.where(resets[..., None], 0.0, a[1]))
    if adjoint:
        a = (_visited_before(a[0], reverse), -_visited_before(a[1], reverse))
    if start is not None:
        b = _begun(a, b, start, reverse)
    return _tree(a, b, reverse)


def _visited_before(a: mx.array, reverse: bool) -> mx.array:
    """Each coefficient's predecessor in the direction of time; what the first one is does not matter."""
    if a.ndim == 1:
        return a
    parts = [a[:, 1:], a[:, -1:]] if reverse else [a[:, :1], a[:, :-1]]
    return mx.concatenate(parts, axis=1)


def _begun(a: Planes, b: Planes, start: Planes, reverse: bool) -> Planes:
    """b with a x_{-1} added at the first step."""
    first = slice(-1, None) if reverse else slice(0, 1)
    begun = _step(*_at(a, first), *(part[:, None] for part in start), *_at(b, first))
    others = slice(0, -1) if reverse else slice(1, None)
    re, im = (_joined([end, part[:, others]], reverse) for end, part in zip(begun, b, strict=True))
    return re, im


def _tree(a: Planes, b: Planes, reverse: bool) -> Planes:
    rows, L, M = b[0].shape
    groups, rest = divmod(L, RADIX)
    if not groups:
        return _loop(a, b, None, reverse)
    grouped = slice(rest, None) if reverse else slice(0, L - rest)

    def members(x: Planes) -> list[Planes]:
        """A group's steps in the direction of time; where all steps share one coefficient, that one for each."""
        if x[0].ndim == 1:
            return [x] * RADIX
        side_by_side = [part[:, grouped].reshape(rows, groups, RADIX * M) for part in x]
        parts = [[part[..., j * M : (j + 1) * M] for part in side_by_side] for j in range(RADIX)]
        return [(re, im) for re, im in (parts[::-1] if reverse else parts)]

    steps = list(zip(members(a), members(b), strict=True))
    (decay, end), *others = steps
    for a_j, b_j in others:
        decay, end = _product(*a_j, *decay), _step(*a_j, *end, *b_j)
    ends = _tree(decay, end, reverse)
    x = (_delayed(ends[0], reverse), _delayed(ends[1], reverse))
    states = []
    for a_j, b_j in steps[:-1]:
        x = _step(*a_j, *x, *b_j)
        states.append(x)
    states = [ends, *states[::-1]] if reverse else [*states, ends]
    re, im = (mx.concatenate(parts, axis=-1).reshape(rows, L - rest, M) for parts in zip(*states, strict=True))
    return _extended(a, b, (re, im), rest, reverse) if rest else (re, im)


def _extended(a: Planes, b: Planes, x: Planes, rest: int, reverse: bool) -> Planes:
    """x with the last steps, which fill no group."""
    last = slice(0, rest) if reverse else slice(-rest, None)
    edge = slice(0, 1) if reverse else slice(-1, None)
    tail = _loop(_at(a, last), _at(b, last), _at(x, edge), reverse)
    re, im = (_joined(parts, reverse) for parts in zip(x, tail, strict=True))
    return re, im


def _loop(a: Planes, b: Planes, x: Planes | None, reverse: bool) -> Planes:
    """The recurrence step by step, from x (rows, 1, M) or zero."""
    L, states = b[0].shape[1], []
    for k in range(L)[::-1] if reverse else range(L):
        here = slice(k, k + 1)
        x = _at(b, here) if x is None else _step(*_at(a, here), *x, *_at(b, here))
        states.append(x)
    re, im = (_joined(parts, reverse) for parts in zip(*states, strict=True))
    return re, im


def _at(x: Planes, steps: slice) -> Planes:
    """Some steps of x; coefficients that are the same for all steps as they are."""
    return x if x[0].ndim == 1 else (x[0][:, steps], x[1][:, steps])


def _joined(parts: Iterable[mx.array], reverse: bool) -> mx.array:
    """Pieces of time, given in the order in which time runs."""
    parts = list(parts)
    return mx.concatenate(parts[::-1] if reverse else parts, axis=1)


def _delayed(x: mx.array, reverse: bool) -> mx.array:
    """x_{k-1} in the direction of time, from zero."""
    zero = mx.zeros_like(x[:, :1])
    return mx.concatenate([x[:, 1:], zero] if reverse else [zero, x[:, :-1]], axis=1)


# Compiled, so that each makes one pass over memory; mlx does without where there is no C++ compiler.


@functools.partial(mx.compile, shapeless=True)
def _step(
    a_re: mx.array, a_im: mx.array, x_re: mx.array, x_im: mx.array, b_re: mx.array, b_im: mx.array
) -> tuple[mx.array, mx.array]:
    """a x + b."""
    return a_re * x_re - a_im * x_im + b_re, a_re * x_im + a_im * x_re + b_im


@functools.partial(mx.compile, shapeless=True)
def _product(a_re: mx.array, a_im: mx.array, x_re: mx.array, x_im: mx.array) -> tuple[mx.array, mx.array]:
    """a x."""
    return a_re * x_re - a_im * x_im, a_re * x_im + a_im * x_re
