"""The diagonal recurrence on a CPU: an odd-even tree of element-wise products on (re, im) planes.

mlx has no scan, a loop over the samples costs a millisecond per sample with its gradient, and recursive doubling makes
log2(L) passes over everything. The tree makes as many passes over halves, quarters and so on: about two in all.
"""

from __future__ import annotations

import functools

import mlx.core as mx

Planes = tuple[mx.array, mx.array]


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
    at_first = tuple(part if part.ndim == 1 else part[:, first] for part in a)
    begun = _step(*at_first, *(part[:, None] for part in start), *(part[:, first] for part in b))
    order = (lambda end, rest: [rest[:, :-1], end]) if reverse else (lambda end, rest: [end, rest[:, 1:]])
    re, im = (mx.concatenate(order(end, rest), axis=1) for end, rest in zip(begun, b, strict=True))
    return re, im


def _tree(a: Planes, b: Planes, reverse: bool) -> Planes:
    rows, L, M = b[0].shape
    if L == 1:
        return b
    odd = L % 2
    paired = slice(odd, None) if reverse else slice(0, L - odd)
    leads, follows = (1, 0) if reverse else (0, 1)

    def member(part: mx.array, which: int) -> mx.array:
        return part if part.ndim == 1 else part[:, paired].reshape(rows, L // 2, 2, M)[:, :, which]

    a_lead, a_follow = (tuple(member(part, which) for part in a) for which in (leads, follows))
    b_lead, b_follow = (tuple(member(part, which) for part in b) for which in (leads, follows))
    ends = _tree(_product(*a_follow, *a_lead), _step(*a_follow, *b_lead, *b_follow), reverse)
    first = _step(*a_lead, *(_delayed(part, reverse) for part in ends), *b_lead)
    order = (ends, first) if reverse else (first, ends)
    x = tuple(mx.stack(parts, axis=2).reshape(rows, L - odd, M) for parts in zip(*order, strict=True))
    return _extended(a, b, (x[0], x[1]), reverse) if odd else (x[0], x[1])


def _extended(a: Planes, b: Planes, x: Planes, reverse: bool) -> Planes:
    """x with the one step that found no partner."""
    last, edge = (slice(0, 1), slice(0, 1)) if reverse else (slice(-1, None), slice(-1, None))
    at_last = tuple(part if part.ndim == 1 else part[:, last] for part in a)
    end = _step(*at_last, *(part[:, edge] for part in x), *(part[:, last] for part in b))
    order = (lambda end, rest: [end, rest]) if reverse else (lambda end, rest: [rest, end])
    re, im = (mx.concatenate(order(e, rest), axis=1) for e, rest in zip(end, x, strict=True))
    return re, im


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
