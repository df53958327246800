"""Recurrences as kernels for GPUs: one source, metal/*.metal, for Metal on Apple silicon and for mlx's CUDA build.

Complex arrays are (re, im) planes, since neither Metal nor mlx has a fast complex type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any

import mlx.core as mx

Planes = tuple[mx.array, mx.array]

#: Threads of a SIMD group on Apple's GPUs, and of a warp.
LANES = 32
#: Pieces of time per threadgroup, composed in threadgroup memory: at most 1024 threads and 32 KB of it.
PIECES = 16
#: Samples of a block whose states the gradient holds in thread memory; written into siso_scan_vjp.metal as well.
BLOCK = 32


def available() -> bool:
    """Whether mlx has a GPU to run these kernels on."""
    return mx.metal.is_available() or mx.cuda.is_available()


@functools.cache
def kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Callable[..., list[mx.array]]:
    """The kernel metal/name.metal, compiled by mlx at its first use."""
    make: Callable[..., Any] = mx.fast.cuda_kernel if mx.cuda.is_available() else mx.fast.metal_kernel
    return make(name, list(inputs), list(outputs), source(f"{name}.metal"), header(mx.cuda.is_available()))


def source(file: str) -> str:
    """The text of a file beside the kernels."""
    return (resources.files(__package__) / "metal" / file).read_text()


def header(cuda: bool) -> str:
    """What precedes the kernels: for CUDA, Metal's names."""
    return source("cuda.h") if cuda else ""


# --- the diagonal scan -----------------------------------------------------------------------------------------


def diagonal_scan(a: Planes, b: Planes, start: Planes, resets: mx.array | None = None, reverse: bool = False) -> Planes:
    """ptd.recurrence.scan on planes, or with reverse the recurrence x_k = a_k x_{k+1} + b_k from right to left.

    Args:
        a: (M,), or (rows, L, M) per step.
        b: (rows, L, M).
        start: (rows, M), the state before the first step taken.
        resets: bool (rows, L), or None.
        reverse: the direction of time.

    Returns:
        x, (rows, L, M).
    """
    return _scan_with_gradient(reverse, resets is not None)(*a, *b, *start, _flags(resets))


@functools.cache
def _scan_with_gradient(reverse: bool, with_resets: bool) -> Callable:
    @mx.custom_function
    def scan(a_re: Any, a_im: Any, b_re: Any, b_im: Any, start_re: Any, start_im: Any, resets: Any) -> Planes:
        return _launch_scan((a_re, a_im), (b_re, b_im), (start_re, start_im), resets, reverse, with_resets)

    @scan.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple:
        """With l_k = conj(a_{k+1}) l_{k+1} + g_k: l for b, conj(a_0) l_0 for the start, conj(x_{k-1}) l_k for a."""
        a, start, resets = primals[0:2], primals[4:6], primals[6]
        zero = tuple(map(mx.zeros_like, start))
        l = _launch_scan(a, cotangents, zero, resets, not reverse, with_resets, adjoint=True)  # noqa: E741
        before = tuple(_before(x, x0, reverse) for x, x0 in zip(outputs, start, strict=True))
        first = -1 if reverse else 0
        at_first = tuple(part[..., first, :] if part.ndim > 1 else part for part in a)
        moved = _conjugate_product(at_first, tuple(part[:, first] for part in l))
        if with_resets:
            before = tuple(mx.where(resets[..., None], 0.0, part) for part in before)
            moved = tuple(mx.where(resets[:, first, None], 0.0, part) for part in moved)
        by_step = _conjugate_product(before, l)
        by_a = by_step if a[0].ndim > 1 else tuple(mx.sum(part, axis=(0, 1)) for part in by_step)
        return (*by_a, *l, *moved, mx.zeros_like(resets))

    return scan


def _launch_scan(
    a: Planes, b: Planes, start: Planes, resets: mx.array, reverse: bool, with_resets: bool, adjoint: bool = False
) -> Planes:
    rows, L, M = b[0].shape
    modes = min(LANES, 1 << (M - 1).bit_length())
    run = kernel(
        "diagonal_scan",
        ("a_re", "a_im", "b_re", "b_im", "start_re", "start_im", "resets", "sizes"),
        ("out_re", "out_im"),
    )
    options = {"FIXED": a[0].ndim == 1, "REVERSE": reverse, "ADJOINT": adjoint, "RESETS": with_resets}
    out_re, out_im = run(
        inputs=[*a, *b, *start, resets, mx.array([L, M], mx.uint32)],
        template=[*options.items(), ("MODES", modes), ("CHUNKS", PIECES)],
        grid=(rows * -(-M // modes) * modes, PIECES, 1),
        threadgroup=(modes, PIECES, 1),
        output_shapes=[b[0].shape] * 2,
        output_dtypes=[mx.float32] * 2,
    )
    return out_re, out_im


def _before(x: mx.array, start: mx.array, reverse: bool) -> mx.array:
    """x_{k-1} in the direction of time, starting from the start."""
    if reverse:
        return mx.concatenate([x[:, 1:], start[:, None]], axis=1)
    return mx.concatenate([start[:, None], x[:, :-1]], axis=1)


def _conjugate_product(z: Planes, w: Planes) -> Planes:
    """conj(z) w."""
    return z[0] * w[0] + z[1] * w[1], z[0] * w[1] - z[1] * w[0]


# --- the fused single-input, single-output scan ----------------------------------------------------------------


def siso_scan(
    u: mx.array, a: Planes, w: Planes, c: Planes, start: Planes, resets: mx.array | None = None
) -> tuple[mx.array, Planes]:
    """y_k = Re sum_n c_n x_{k,n} with x_k = a x_{k-1} + w u_k per channel, without the states in memory.

    Args:
        u: (batch, H, L).
        a, w, c: (H, N).
        start: (batch, H, N).
        resets: bool (batch, L), or None.

    Returns:
        y (batch, H, L) and the final states (batch, H, N).
    """
    y, end_re, end_im = _siso_with_gradient(resets is not None)(u, *a, *w, *c, *start, _flags(resets))
    return y, (end_re, end_im)


@functools.cache
def _siso_with_gradient(with_resets: bool) -> Callable:
    @mx.custom_function
    def scan(u: Any, *arguments: Any) -> tuple[mx.array, mx.array, mx.array]:
        return _launch_siso(u, arguments, with_resets)

    @scan.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple:
        return _launch_siso_vjp(primals, cotangents, with_resets)

    return scan


_SYSTEM = ("a_re", "a_im", "w_re", "w_im", "c_re", "c_im", "start_re", "start_im")


def _launch_siso(u: mx.array, arguments: tuple, with_resets: bool) -> Any:
    (batch, H, L), N = u.shape, arguments[0].shape[-1]
    run = kernel("siso_scan", ("u", *_SYSTEM, "resets", "sizes"), ("y", "end_re", "end_im"))
    return run(
        inputs=[u, *arguments, mx.array([L, H, N], mx.uint32)],
        output_shapes=[u.shape, (batch, H, N), (batch, H, N)],
        output_dtypes=[mx.float32] * 3,
        **_per_channel(batch * H, N, with_resets),
    )


def _launch_siso_vjp(primals: tuple, cotangents: tuple, with_resets: bool) -> tuple:
    u, *system, resets = primals
    (batch, H, L), N = u.shape, system[0].shape[-1]
    launch = _per_channel(batch * H, N, with_resets)
    pieces = launch["threadgroup"][1]
    run = kernel(
        "siso_scan_vjp",
        ("u", "gy", "gend_re", "gend_im", *_SYSTEM, "resets", "sizes"),
        ("gu", *(f"g{name}" for name in _SYSTEM), "edge_re", "edge_im"),
    )
    blocks = -(-L // BLOCK)
    sums, states, edges = [(batch, H, pieces, N)] * 6, [(batch, H, N)] * 2, [(batch, H, blocks, N)] * 2
    gu, *g = run(
        inputs=[u, *cotangents, *system, resets, mx.array([L, H, N], mx.uint32)],
        output_shapes=[u.shape, *sums, *states, *edges],
        output_dtypes=[mx.float32] * 11,
        **launch,
    )
    return (gu, *(mx.sum(part, axis=(0, 2)) for part in g[:6]), *g[6:8], mx.zeros_like(resets))


def _per_channel(rows: int, N: int, with_resets: bool) -> dict[str, Any]:
    """The launch of one SIMD group per channel and piece of time; more modes per lane leave memory for fewer pieces."""
    each = -(-N // LANES)
    pieces = max(1, PIECES // each)
    return {
        "template": [("RESETS", with_resets), ("EACH", each), ("CHUNKS", pieces)],
        "grid": (rows * LANES, pieces, 1),
        "threadgroup": (LANES, pieces, 1),
    }


def _flags(resets: mx.array | None) -> mx.array:
    return mx.zeros((1,), mx.bool_) if resets is None else resets
