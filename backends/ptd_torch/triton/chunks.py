"""Layers with a system per feature over chunks of T samples, as Triton kernels.

A walk owns one feature, one direction and 16 or 32 sequences, carries their states through the chunks in registers, and
writes those that enter each chunk; all that its steps hand on is one multiplication. Outputs are then products over all
chunks at once, y = u direct + x out. The gradient is the same two with transposed matrices from the other side, and
sums of products over all chunks for the matrices.

Signals are (H, R, L), time last, since a program reads whole chunks of one feature (turns.py makes them so). Where
features and sequences alone would leave the device idle, time is cut into segments, which count as further sequences: a
walk that only finds the states at their ends, a scan over these, and the walk again with the states that enter.

Where sequences have lengths, chunks without a valid sample are neither read nor written, in no array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptd import arrays, convolution

from .products import dot, entries, precision

#: Rows (sequences) of a walk, its warps, and how many chunks ahead it loads, by the bytes of an entry of the signal; of
#: dense transitions as in float32. This and the next two: the fastest of ten settings on an H200, in bfloat16 of 18, 16
#: and 18.
WALK_TILES = {2: (32, 1, 3), 4: (16, 2, 3)}

#: Rows (chunks) of a tile of outputs, its warps and stages, and the bytes of a row of states that it takes at a time.
OUTPUT_ROWS, OUTPUT_WARPS, OUTPUT_STAGES, OUTPUT_BYTES = 128, 4, 2, 128

#: Rows (chunks), warps and stages of the program that sums up the gradients of the matrices, by the bytes of an entry
#: of the signal, and how many programs there are.
PRODUCT_TILES, PRODUCT_PROGRAMS = {2: (64, 4, 3), 4: (32, 8, 2)}, 264

#: Programs that keep the device busy; fewer, and time is cut into segments.
ENOUGH_PROGRAMS = 256


@triton.jit
def _chunks_within(lengths, r, mask, T: tl.constexpr):
    """The chunks of sequence r that hold valid samples."""
    return tl.cdiv(tl.load(lengths + r, mask=mask, other=0), T).to(tl.int32)


@triton.jit
def _with_samples(row, live, lengths, n, T: tl.constexpr):
    """Which chunks, numbered through sequences of n, of those that are live hold valid samples."""
    if lengths is not None:
        live = live & (row % n < _chunks_within(lengths, row // n, live, T))
    return live


@triton.jit
def _walk(
    u, decay, into, x0, entering, final, lengths,
    N, R, n, M, row_stride, mirrored, a_row, a_column, i_time, i_mode,
    T: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, DIRECTIONS: tl.constexpr,
    DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The states that enter each chunk, where entering is given, and the last, where final is, of one direction.

    mirrored swaps the sides from which directions run: so does the gradient.
    """
    d, h = tl.program_id(0), tl.program_id(2)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    t, k = tl.arange(0, T), tl.arange(0, K)
    live = row < N
    seen = live[:, None] & (k < M)[None, :]
    width = DIRECTIONS * 2 * M
    into_h = into + h * T * width + d * 2 * M * i_mode
    I_re = entries(into_h, t, k, i_time, i_mode, T, M)
    I_im = entries(into_h + M * i_mode, t, k, i_time, i_mode, T, M)
    if DENSE:
        A = decay + h * 4 * M * M
        A_rr = entries(A, k, k, a_row, a_column, M, M)
        A_ri = entries(A + M * a_column, k, k, a_row, a_column, M, M)
        A_ir = entries(A + M * a_row, k, k, a_row, a_column, M, M)
        A_ii = entries(A + M * (a_row + a_column), k, k, a_row, a_column, M, M)
    else:
        a_re = tl.load(decay + h * 2 * M + k, mask=k < M, other=0.0)[None, :]
        a_im = tl.load(decay + h * 2 * M + M + k, mask=k < M, other=0.0)[None, :]
    r, segment, segments = (row % R).to(tl.int64), row // R, N // R
    end = (((h * DIRECTIONS + d).to(tl.int64) * R + r) * segments + segment)[:, None] * 2 * M + k[None, :]
    if x0 is not None:
        x_re = tl.load(x0 + end, mask=seen, other=0.0)
        x_im = tl.load(x0 + end + M, mask=seen, other=0.0)
    else:
        x_re = tl.zeros((ROWS, K), tl.float32)
        x_im = tl.zeros((ROWS, K), tl.float32)
    first = h.to(tl.int64) * R * row_stride + r * row_stride + segment * (n * T)
    u_at = u + first[:, None] + t[None, :]
    if entering is not None:
        chunk = (h.to(tl.int64) * R + r) * segments * n + segment * n
        x_at = entering + chunk[:, None] * width + d * 2 * M + k[None, :]
    backwards = d != mirrored
    count, stop = tl.where(live, n, 0), n
    if lengths is not None:
        count = _chunks_within(lengths, r, live, T) - segment * n
        if x0 is None and final is None:
            stop = tl.minimum(n, tl.max(count, 0))
    for j in range(stop):
        c = tl.where(backwards, stop - 1 - j, j)
        valid = (c < count)[:, None]
        v = tl.load(u_at + c * T, mask=valid, other=0.0)
        if entering is not None:
            here = x_at + c * width
            tl.store(here, x_re.to(u.dtype.element_ty), mask=seen & valid)
            tl.store(here + M, x_im.to(u.dtype.element_ty), mask=seen & valid)
        z_re = dot(v, I_re, tl.zeros((ROWS, K), tl.float32), PRECISION)
        z_im = dot(v, I_im, tl.zeros((ROWS, K), tl.float32), PRECISION)
        if DENSE:
            z_re = dot(x_re, A_rr, z_re, "tf32x3")
            z_im = dot(x_re, A_ri, z_im, "tf32x3")
            z_re = dot(x_im, A_ir, z_re, "tf32x3")
            z_im = dot(x_im, A_ii, z_im, "tf32x3")
            x_re, x_im = z_re, z_im
        else:
            x_re, x_im = a_re * x_re - a_im * x_im + z_re, a_re * x_im + a_im * x_re + z_im
    if final is not None:
        tl.store(final + end, x_re, mask=seen)
        tl.store(final + end + M, x_im, mask=seen)


@triton.jit
def _outputs(
    u, x, direct, out, y, lengths, chunks, n, width, w_in, w_out, o_mode, o_time,
    T: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = u direct + x out over a tile of the chunks of one feature: u and y (H, chunks, T), x (H, chunks, width)."""
    h = tl.program_id(1).to(tl.int64)
    row, t = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, T)
    live = _with_samples(row, row < chunks, lengths, n, T)[:, None]
    rows = h * chunks + row[:, None]
    here = rows * T + t[None, :]
    # Loaded first and used last: on its way while the loop's loads are.
    v, W = tl.load(u + here, mask=live, other=0.0), entries(direct + h * T * T, t, t, w_in, w_out, T, T)
    total = tl.zeros((BM, T), tl.float32)
    for first in range(0, width, BK):
        k = first + tl.arange(0, BK)
        z = tl.load(x + rows * width + k[None, :], mask=live & (k < width)[None, :], other=0.0)
        read = entries(out + h * T * width, k, t, o_mode, o_time, width, T)
        total = dot(z, read, total, PRECISION)
    total = dot(v, W, total, PRECISION)
    tl.store(y + here, total.to(y.dtype.element_ty), mask=live)


@triton.jit
def _products(
    u, x, grad_y, g, grad_decay, grad_into, grad_out, grad_direct, lengths,
    chunks, n, share, M,
    T: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, DIRECTIONS: tl.constexpr,
    DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of the matrices of one feature and direction over a share of all chunks; not of a dense decay.

    u and grad_y are (H, chunks, T); x, the states that enter each chunk, and g, the gradients of those that leave it,
    (H, chunks, D, 2, M).
    """
    d, h, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t, k = tl.arange(0, T), tl.arange(0, K)
    width = DIRECTIONS * 2 * M
    if not DENSE:
        ga_re = tl.zeros((ROWS, K), tl.float32)
        ga_im = tl.zeros((ROWS, K), tl.float32)
    gI_re = tl.zeros((T, K), tl.float32)
    gI_im = tl.zeros((T, K), tl.float32)
    gO_re = tl.zeros((T, K), tl.float32)
    gO_im = tl.zeros((T, K), tl.float32)
    gW = tl.zeros((T, T), tl.float32)
    u_at = u + h.to(tl.int64) * chunks * T + t[None, :]
    gy_at = grad_y + h.to(tl.int64) * chunks * T + t[None, :]
    states = h.to(tl.int64) * chunks * width + d * 2 * M + k[None, :]
    stop = tl.minimum((part + 1) * share, chunks)
    for j in range(part * share, stop, ROWS):
        row = j + tl.arange(0, ROWS)
        live = _with_samples(row, row < stop, lengths, n, T)[:, None]
        seen = live & (k < M)[None, :]
        row = row.to(tl.int64)
        v = tl.load(u_at + row[:, None] * T, mask=live, other=0.0)
        w = tl.load(gy_at + row[:, None] * T, mask=live, other=0.0)
        here = states + row[:, None] * width
        x_re = tl.load(x + here, mask=seen, other=0.0)
        x_im = tl.load(x + here + M, mask=seen, other=0.0)
        g_re = tl.load(g + here, mask=seen, other=0.0)
        g_im = tl.load(g + here + M, mask=seen, other=0.0)
        vT, wT = tl.trans(v), tl.trans(w)
        if d == 0:
            gW = dot(vT, w, gW, PRECISION)
        gI_re = dot(vT, g_re, gI_re, PRECISION)
        gI_im = dot(vT, g_im, gI_im, PRECISION)
        gO_re = dot(wT, x_re, gO_re, PRECISION)
        gO_im = dot(wT, x_im, gO_im, PRECISION)
        if not DENSE:
            x_re, x_im, g_re, g_im = (
                x_re.to(tl.float32), x_im.to(tl.float32), g_re.to(tl.float32), g_im.to(tl.float32)
            )  # fmt: skip
            ga_re += x_re * g_re + x_im * g_im
            ga_im += x_re * g_im - x_im * g_re
    program = part.to(tl.int64) * tl.num_programs(1) + h
    within = (k < M)[None, :]
    at = grad_into + program * T * width + d * 2 * M + t[:, None] * width + k[None, :]
    tl.store(at, gI_re, mask=within)
    tl.store(at + M, gI_im, mask=within)
    at = grad_out + (program * width + d * 2 * M) * T + k[None, :] * T + t[:, None]
    tl.store(at, gO_re, mask=within)
    tl.store(at + M * T, gO_im, mask=within)
    if d == 0:
        tl.store(grad_direct + program * T * T + t[:, None] * T + t[None, :], gW)
    if not DENSE:
        program = program * DIRECTIONS + d
        at = grad_decay + program * 2 * M + k
        tl.store(at, tl.sum(ga_re, 0), mask=k < M)
        tl.store(at + M, tl.sum(ga_im, 0), mask=k < M)


@dataclass(frozen=True)
class Matrices:
    """The matrices of H systems over chunks, contiguous: those of ptd.chunks.ChunkSystem.

    Attributes:
        decay: float32 (H, 2, M) planes of a diagonal, or (H, 2, M, 2, M), from state to state.
        into: (H, T, D 2 M), in the dtype of the signal, as out and direct.
        out: (H, D 2 M, T).
        direct: (H, T, T).
    """

    decay: Tensor
    into: Tensor
    out: Tensor
    direct: Tensor

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """H, T, D and M."""
        H, T, width = self.into.shape
        M = self.decay.shape[-1]
        return H, T, width // (2 * M), M

    def constants(self) -> dict[str, bool | int | str]:
        """What the kernels are specialised to."""
        _, T, D, M = self.sizes
        padded = max(16, triton.next_power_of_2(M))
        return {"T": T, "K": padded, "DIRECTIONS": D, "DENSE": self.decay.ndim == 5, "PRECISION": precision()}


def run(
    v: Tensor, matrices: Matrices, x0: Tensor | None, lengths: Tensor | None, *, last: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Outputs, final states and the states entering each chunk.

    Args:
        v: (H, R, n T), the signals.
        matrices: the systems.
        x0: float32 (H, D, R, 2, M), the state before the first chunk of each direction; zero if None.
        lengths: integer (R,), or None; nothing is set in chunks without a valid sample.
        last: whether final states are wanted.

    Returns:
        y (H, R, n T); final (H, D, R, 2, M) or None; entering (H, R, n, D, 2, M), in the dtype of v.
    """
    return _run(v, matrices, x0, lengths, last=last, adjoint=False)


def run_backward(
    v: Tensor,
    matrices: Matrices,
    entering: Tensor,
    lengths: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    first: bool,
) -> tuple[Tensor, Matrices, Tensor | None]:
    """The gradients of run by v, by the matrices and, where first, by x0, from those by y (H, R, n T) and final."""
    H, T, D, M = matrices.sizes
    grad_v, grad_x0, leaving = _run(grad_y, matrices, grad_final, lengths, last=first, adjoint=True)
    chunks = v.numel() // (H * T)
    rows, warps, stages = PRODUCT_TILES[v.element_size()]
    share = triton.cdiv(triton.cdiv(chunks, max(1, PRODUCT_PROGRAMS // (H * D))), rows) * rows
    parts = triton.cdiv(chunks, share)
    new, dense = matrices.decay.new_empty, matrices.decay.ndim == 5
    of_decay = None if dense else new((parts, H, D, *matrices.decay.shape[1:]))
    sums = [new((parts, *m.shape)) for m in (matrices.into, matrices.out, matrices.direct)]
    _products[(D, H, parts)](
        v, entering, grad_y, leaving, of_decay, *sums, lengths, chunks, v.shape[-1] // T, share, M,
        **matrices.constants(), ROWS=rows, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if of_decay is None:  # four more sums in the same kernel spill
        states, gradients = (x.view(H, -1, D, 2 * M) for x in (entering, leaving))
        by_direction = [states[:, :, d].mT @ gradients[:, :, d] for d in range(D)]
        decay = sum(product.to(matrices.decay.dtype) for product in by_direction).view(matrices.decay.shape)
    else:
        decay = of_decay.sum((0, 2))
    rest = (m.sum(0) if parts > 1 else m[0] for m in sums)
    return grad_v, Matrices(decay, *rest), grad_x0


def _run(
    v: Tensor, matrices: Matrices, x0: Tensor | None, lengths: Tensor | None, *, last: bool, adjoint: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """run; or the gradient by its v from that by y as v and that by final as x0, with the gradients by the states
    that leave each chunk.
    """
    R, (H, _, D, M), dense = v.shape[1], matrices.sizes, matrices.decay.ndim == 5
    if adjoint and not dense:
        # Without a tensor from the host, which no CUDA graph takes.
        conjugate = torch.stack([matrices.decay[:, 0], -matrices.decay[:, 1]], dim=1)
        matrices = Matrices(conjugate, matrices.into, matrices.out, matrices.direct)
    S, n = _cut(v, matrices)
    entering = v.new_empty((H, R, S * n, D, 2, M))
    if dense and lengths is not None:
        entering.zero_()  # the library sums over all of them
    ends = matrices.decay.new_empty((H, D, R, S, 2, M)) if last or S > 1 else None
    if S > 1:
        _launch_walk(v, matrices, None, None, ends, lengths, n, adjoint)
        x0, final = _between(matrices.decay, ends, x0, n, adjoint=adjoint)
        _launch_walk(v, matrices, x0, entering, None, lengths, n, adjoint)
    else:
        _launch_walk(v, matrices, x0, entering, ends, lengths, n, adjoint)
        final = None if ends is None else ends[:, :, :, 0]
    return _launch_outputs(v, entering, lengths, matrices, adjoint), final, entering


def _cut(v: Tensor, matrices: Matrices) -> tuple[int, int]:
    """Segments and chunks of a segment. Segments are equal, so that none ends in padding."""
    H, R, length = v.shape
    _, T, D, _ = matrices.sizes
    n, S, (rows, _, _) = length // T, 1, _walk_tile(v, matrices)
    while n % (2 * S) == 0 and n // S > 8 and triton.cdiv(S * R, rows) * H * D < ENOUGH_PROGRAMS:
        S *= 2
    return S, n // S


def _between(decay: Tensor, ends: Tensor, start: Tensor | None, n: int, *, adjoint: bool) -> tuple[Tensor, Tensor]:
    """The states that enter each segment of n chunks, like ends, and those after the last, (H, D, R, 2, M).

    ends (H, D, R, S, 2, M) are the states after each segment when nothing enters; start (H, D, R, 2, M) enters the
    first. The adjoint runs from the last segment to the first, with the transpose.
    """
    H, D, R, S, _, M = ends.shape
    power = _power(decay, n)
    if adjoint and power.ndim == 5:
        power = power.permute(0, 3, 4, 1, 2)
    entering = torch.empty_like(ends)
    finals = []
    for d in range(D):
        x = ends.new_zeros((H, R, 2, M)) if start is None else start[:, d]
        for s in range(S) if (d == 0) != adjoint else reversed(range(S)):
            entering[:, d, :, s] = x
            x = _advanced(power, x) + ends[:, d, :, s]
        finals.append(x)
    return entering, torch.stack(finals, dim=1)


def _advanced(transition: Tensor, x: Tensor) -> Tensor:
    """The transition, (H, 2, M) or (H, 2, M, 2, M), of states (H, R, 2, M)."""
    if transition.ndim == 5:
        H, R, _, M = x.shape
        return arrays.product(x.view(H, R, 2 * M), transition.reshape(H, 2 * M, 2 * M)).view(x.shape)
    (a_re, a_im), (x_re, x_im) = transition[:, None].unbind(-2), x.unbind(-2)
    return torch.stack([a_re * x_re - a_im * x_im, a_re * x_im + a_im * x_re], dim=-2)


def _power(transition: Tensor, n: int) -> Tensor:
    """The transition n times, by repeated squaring."""
    H, _, M = transition.shape[:3]
    if transition.ndim == 5:
        return convolution.matrix_power(transition.view(H, 2 * M, 2 * M), n).view(transition.shape)
    result: Any = None
    square = transition[:, None]
    while n:
        if n % 2:
            result = square if result is None else _advanced(square[:, 0], result)
        square, n = _advanced(square[:, 0], square), n // 2
    return result[:, 0]


def _walk_tile(v: Tensor, matrices: Matrices) -> tuple[int, int, int]:
    return WALK_TILES[4 if matrices.decay.ndim == 5 else v.element_size()]


def _launch_walk(
    v: Tensor, matrices: Matrices, x0: Tensor | None, entering: Tensor | None, final: Tensor | None,
    lengths: Tensor | None, n: int, adjoint: bool,
) -> None:  # fmt: skip
    """The walk through segments of n chunks."""
    (H, R, length), (_, T, D, M) = v.shape, matrices.sizes
    into, square = (matrices.into, (D * 2 * M, 1)), (2 * M, 1)
    if adjoint:
        into, square = (matrices.out, (1, T)), (1, 2 * M)
    N = length // (n * T) * R
    rows, warps, stages = _walk_tile(v, matrices)
    _walk[(D, triton.cdiv(N, rows), H)](
        v, matrices.decay, into[0], x0, entering, final, lengths,
        N, R, n, M, length, int(adjoint), *square, *into[1],
        **matrices.constants(), ROWS=rows, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _launch_outputs(
    v: Tensor, entering: Tensor, lengths: Tensor | None, matrices: Matrices, adjoint: bool
) -> Tensor:  # fmt: skip
    """y, or the gradient by v, like v."""
    H, T, D, M = matrices.sizes
    chunks, width, y = v.numel() // (H * T), D * 2 * M, torch.empty_like(v)
    direct, out = (T, 1), (matrices.out, (T, 1))
    if adjoint:
        direct, out = (1, T), (matrices.into, (1, width))
    BK = max(16, min(OUTPUT_BYTES // v.element_size(), triton.next_power_of_2(width)))
    _outputs[(triton.cdiv(chunks, OUTPUT_ROWS), H)](
        v, entering, matrices.direct, out[0], y, lengths, chunks, v.shape[-1] // T, width, *direct, *out[1],
        T=T, BM=OUTPUT_ROWS, BK=BK, PRECISION=precision(), num_warps=OUTPUT_WARPS, num_stages=OUTPUT_STAGES,
    )  # fmt: skip
    return y
