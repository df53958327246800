"""Recurrences as kernels for GPUs: one source, metal/*.metal, for Metal on Apple silicon and for mlx's CUDA build.

Complex arrays are (re, im) planes, since neither Metal nor mlx has a fast complex type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any

import mlx.core as mx

from .streams import differentiable
from .tree import Planes

#: Threads of a SIMD group on Apple's GPUs, and of a warp.
LANES = 32
#: Pieces of time per threadgroup, composed in threadgroup memory: at most 1024 threads and 32 KB of it.
PIECES = 16
#: Samples of a block whose states the gradient holds in thread memory; written into siso_scan_vjp.metal as well.
BLOCK = 32


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


def run(
    a: Planes,
    b: Planes,
    start: Planes | None = None,
    resets: mx.array | None = None,
    *,
    reverse: bool = False,
    adjoint: bool = False,
) -> Planes:
    """As tree.run, in one kernel."""
    rows, L, M = b[0].shape
    if not rows:
        return b
    modes = min(LANES, 1 << (M - 1).bit_length())
    scan = kernel(
        "diagonal_scan",
        ("a_re", "a_im", "b_re", "b_im", "start_re", "start_im", "resets", "sizes"),
        ("out_re", "out_im"),
    )
    options = {"FIXED": a[0].ndim == 1, "REVERSE": reverse, "ADJOINT": adjoint, "RESETS": resets is not None}
    start = start or (mx.zeros((rows, M)), mx.zeros((rows, M)))
    re, im = scan(
        inputs=[*a, *b, *start, _flags(resets), mx.array([L, M], mx.uint32)],
        template=[*options.items(), ("MODES", modes), ("CHUNKS", PIECES)],
        grid=(rows * -(-M // modes) * modes, PIECES, 1),
        threadgroup=(modes, PIECES, 1),
        output_shapes=[b[0].shape] * 2,
        output_dtypes=[mx.float32] * 2,
    )
    return re, im


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
    if not u.size:
        return u, start
    launch = _per_channel(u.shape[0] * u.shape[1], a[0].shape[-1], resets is not None)
    forward = functools.partial(_siso, _flags(resets), launch)
    backward = functools.partial(_siso_gradients, _flags(resets), launch)
    y, end_re, end_im = differentiable(forward, backward)(u, *a, *w, *c, *start)
    return y, (end_re, end_im)


_SYSTEM = ("a_re", "a_im", "w_re", "w_im", "c_re", "c_im", "start_re", "start_im")


def _siso(resets: mx.array, launch: dict[str, Any], u: mx.array, *system: mx.array) -> Any:
    (batch, H, L), N = u.shape, system[0].shape[-1]
    run = kernel("siso_scan", ("u", *_SYSTEM, "resets", "sizes"), ("y", "end_re", "end_im"))
    return run(
        inputs=[u, *system, resets, mx.array([L, H, N], mx.uint32)],
        output_shapes=[u.shape, (batch, H, N), (batch, H, N)],
        output_dtypes=[mx.float32] * 3,
        **launch,
    )


def _siso_gradients(resets: mx.array, launch: dict[str, Any], arguments: Any, cotangents: Any, _: Any) -> tuple:
    u, *system = arguments
    (batch, H, L), N = u.shape, system[0].shape[-1]
    run = kernel(
        "siso_scan_vjp",
        ("u", "gy", "gend_re", "gend_im", *_SYSTEM, "resets", "sizes"),
        ("gu", *(f"g{name}" for name in _SYSTEM), "edge_re", "edge_im"),
    )
    pieces, blocks = launch["threadgroup"][1], -(-L // BLOCK)
    sums, states, edges = [(batch, H, pieces, N)] * 6, [(batch, H, N)] * 2, [(batch, H, blocks, N)] * 2
    gu, *g = run(
        inputs=[u, *cotangents, *system, resets, mx.array([L, H, N], mx.uint32)],
        output_shapes=[u.shape, *sums, *states, *edges],
        output_dtypes=[mx.float32] * 11,
        **launch,
    )
    return (gu, *(mx.sum(part, axis=(0, 2)) for part in g[:6]), *g[6:8])


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
