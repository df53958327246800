"""Kernels of the mlx backend. The diagonal scan has a gradient of its own: a tree on a CPU, one kernel on a GPU."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ptd.kernels import Kernels
from ptd.pairs import Pair

from . import gpu, tree
from .fourier import causal_convolution
from .streams import differentiable
from .tree import Planes


def scan(
    Lambda_bar: Pair,
    drive: Pair,
    state: Pair | None = None,
    resets: mx.array | None = None,
    *,
    run: Callable[..., Planes] = tree.run,
) -> Pair:
    """ptd.recurrence.scan: work and memory linear in L, forward and backward."""
    *batch, L, M = drive.shape
    rows = math.prod(batch)
    a, b = planes(Lambda_bar), _flat(planes(drive), drive.shape, (rows, L, M))
    if Lambda_bar.ndim > 1:
        a = _flat(a, drive.shape, (rows, L, M))
    start = None if state is None else _flat(planes(state), (*batch, M), (rows, M))
    resets = None if resets is None else mx.broadcast_to(resets, (*batch, L)).reshape(rows, L)
    re, im = with_gradient(run, a, b, start, resets)
    return Pair(re.reshape(drive.shape), im.reshape(drive.shape), drive.xp)


def planes(x: Pair) -> Planes:
    """Real and imaginary part."""
    return x.re, x.im


def _flat(x: Planes, shape: tuple[int, ...], flat: tuple[int, ...]) -> Planes:
    re, im = (mx.broadcast_to(part, shape).reshape(flat) for part in x)
    return re, im


def with_gradient(
    run: Callable[..., Planes],
    a: Planes,
    b: Planes,
    start: Planes | None = None,
    resets: mx.array | None = None,
    *,
    reverse: bool = False,
) -> Planes:
    """A recurrence (tree.run or gpu.run) that is differentiated by another run of it, in the opposite direction."""

    def forward(*arguments: mx.array) -> Planes:
        a, b, start = _unpacked(arguments)
        return run(a, b, start, resets, reverse=reverse)

    def backward(arguments: Any, cotangents: Any, x: Any) -> tuple[mx.array, ...]:
        """With g_k the gradient of x_k alone, l_k = g_k + conj(a_{k+1}) l_{k+1}:

        l for b, conj(x_{k-1}) l_k for a, and conj(a_0) l_0 for the start.
        """
        a, _, start = _unpacked(arguments)
        l = run(a, tuple(cotangents), None, resets, reverse=not reverse, adjoint=True)  # noqa: E741
        before = tuple(_before(part, start and start[i], reverse) for i, part in enumerate(x))
        if resets is not None:
            before = tuple(mx.where(resets[..., None], 0.0, part) for part in before)
        by_a = _conjugate_product(*before, *l)
        if a[0].ndim == 1:
            by_a = (mx.sum(by_a[0], axis=(0, 1)), mx.sum(by_a[1], axis=(0, 1)))
        return (*by_a, *l, *(_at_start(a, l, resets, -1 if reverse else 0) if start else ()))

    return differentiable(forward, backward)(*a, *b, *(start or ()))


def _unpacked(arguments: tuple[mx.array, ...]) -> tuple[Planes, Planes, Planes | None]:
    a_re, a_im, b_re, b_im, *start = arguments
    return (a_re, a_im), (b_re, b_im), (start[0], start[1]) if start else None


def _before(x: mx.array, start: mx.array | None, reverse: bool) -> mx.array:
    """x_{k-1} in the direction of time."""
    edge = mx.zeros_like(x[:, :1]) if start is None else start[:, None]
    return mx.concatenate([x[:, 1:], edge] if reverse else [edge, x[:, :-1]], axis=1)


def _at_start(a: Planes, l: Planes, resets: mx.array | None, first: int) -> Planes:  # noqa: E741
    at_first = tuple(part if part.ndim == 1 else part[:, first] for part in a)
    moved = _conjugate_product(*at_first, *(part[:, first] for part in l))
    if resets is None:
        return moved
    re, im = (mx.where(resets[:, first, None], 0.0, part) for part in moved)
    return re, im


@functools.partial(mx.compile, shapeless=True)
def _conjugate_product(z_re: mx.array, z_im: mx.array, w_re: mx.array, w_im: mx.array) -> Planes:
    """conj(z) w."""
    return z_re * w_re + z_im * w_im, z_re * w_im - z_im * w_re


def fused(
    u: mx.array, Lambda_bar: Pair, B_bar: Pair, C: Pair, state: Pair | None, resets: mx.array | None
) -> tuple[mx.array, Pair]:
    """ptd.kernels.Kernels.fused on a GPU."""
    *batch, L, H = u.shape
    rows, P = math.prod(batch), Lambda_bar.shape[-1]
    features_first = mx.swapaxes(u, -1, -2).reshape(rows, H, L)
    start = (mx.zeros((rows, H, P)),) * 2
    if state is not None:
        start = _flat(planes(state), (*batch, H, P), (rows, H, P))
    resets = None if resets is None else mx.broadcast_to(resets, (*batch, L)).reshape(rows, L)
    y, (re, im) = gpu.siso_scan(features_first, planes(Lambda_bar), planes(B_bar), planes(C), start, resets)
    end = Pair(re.reshape(*batch, H, P), im.reshape(*batch, H, P), C.xp)
    return mx.swapaxes(y.reshape(*batch, H, L), -1, -2), end


ON_CPU = Kernels(scan=scan, causal_convolution=causal_convolution)
ON_GPU = dataclasses.replace(ON_CPU, scan=functools.partial(scan, run=gpu.run), fused=fused)
