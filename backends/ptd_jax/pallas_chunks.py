"""S4D and DSS over chunks of T samples as one GPU kernel, by Pallas through Triton.

A program owns one feature, one direction and a tile of sequences, and walks through their chunks: states stay in
registers, and a chunk costs a few small matrix products. It reads u, writes y and, for the gradient only, the states
that enter each chunk. The gradient by u is the same walk from the other end with transposed matrices; those of the
matrices are products over all chunks, by XLA. Where features and sequences alone would leave the device idle, time is
cut into segments, which count as further sequences, as in pallas_gpu. Under jit on several devices each runs the
features and sequences that lie there.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ptd import sequences
from ptd.arrays import Array, as_planes, from_planes
from ptd.chunks import ChunkSystem

from .recurrences import tree
from .rows import by_rows

#: Rows (sequences) of a program, its warps, and how many chunks ahead it loads. Measured on an H100 with 32 modes: with
#: TF32 products 64 rows take 17 to 24 % less time than 16, also where they are half empty; with three products in place
#: of one 9 % less where they are full, 22 % more where half empty. Eight warps were slower throughout.
FEW, MANY, WARPS, STAGES = 16, 64, 4, 3
#: Programs that keep the device busy; with fewer, time is cut into segments of at least SHORTEST_SEGMENT chunks.
ENOUGH_PROGRAMS, SHORTEST_SEGMENT = 256, 8
#: What a program holds: chunks of that many samples, at most that many modes, and no tile below that for a product.
LENGTHS, MOST_MODES, SMALLEST = (16, 32, 64), 64, 16
#: Settings of jax's default_matmul_precision under which it rounds the factors of products on a GPU to TF32.
ROUNDED = (None, "default", "fastest", "bfloat16", "high", "bfloat16_3x", "tensorfloat32")


class Matrices(NamedTuple):
    """Those of ptd.chunks.ChunkSystem for D directions, with real planes apart: all but decay in the dtype of signals.

    Attributes:
        decay: (H, 2, K).
        into: (H, T, D, 2, K).
        out: (H, D, 2, K, T).
        direct: (H, T, T).
    """

    decay: Array
    into: Array
    out: Array
    direct: Array


def per_feature_chunks(
    u: Array, system: ChunkSystem, state: Array | None, lengths: Array | None = None, interpret: bool = False
) -> tuple[Array, Array | None] | None:
    """See ptd.kernels.Kernels.per_feature_chunks; interpret runs the kernel's meaning on any device."""
    if not _applies(u, system, interpret):
        return None
    *batch, L, H = u.shape
    (_, T, width), M, R = system.into.shape, system.decay.shape[-1], math.prod(batch)
    D, n, lanes = width // (2 * M), -(-L // T), max(SMALLEST, pl.next_power_of_2(M)) - M

    def widened(x: Array, axis: int = -1) -> Array:
        """x with no-ops as further modes, since tiles have powers of two."""
        rest = x.ndim + axis
        return jnp.pad(x, [(0, lanes if i == rest else 0) for i in range(x.ndim)])

    start = jnp.zeros((H, R, D, 2, M), system.decay.real.dtype)
    if state is not None:
        start = start.at[:, :, 0].set(jnp.broadcast_to(state, (H, *batch, 2, M)).reshape(H, R, 2, M))
    matrices = Matrices(
        widened(as_planes(system.decay)),
        widened(system.into.reshape(H, T, D, 2, M)).astype(u.dtype),
        widened(system.out.reshape(H, D, 2, M, T), axis=-2).astype(u.dtype),
        system.direct.astype(u.dtype),
    )
    v = jnp.pad(sequences.mask(u, lengths).reshape(R, L, H), ((0, 0), (0, n * T - L), (0, 0)))
    y, final = _chunks(jnp.transpose(v, (2, 0, 1)).reshape(H, R, n, T), matrices, widened(start), interpret)
    y = jnp.transpose(y.reshape(H, R, n * T), (1, 2, 0))[:, :L].reshape(u.shape)
    if lengths is not None:
        return sequences.mask(y, lengths), None
    return y, final[..., :M].reshape(H, *batch, D, 2, M)


def _applies(u: Array, system: ChunkSystem, interpret: bool) -> bool:
    """Whether the kernel takes a call: a diagonal, states of float32, and what lacking asks for."""
    if not jnp.iscomplexobj(system.decay) or u.size == 0:
        return False
    if not interpret and system.into.dtype != jnp.float32:
        return False
    return lacking(system.into.shape[1], system.decay.shape[-1], u.dtype, None if interpret else device_limit()) is None


def lacking(T: int, M: int, dtype: Any, limit: int | None) -> str | None:
    """What keeps the kernel from running chunks of T samples of dtype through M modes, in words; None if nothing does.

    Args:
        limit: bytes of shared memory that a program may have, None if unknown; see device_limit.
    """
    if T not in LENGTHS:
        return f"chunks of {', '.join(map(str, LENGTHS))} samples, not {T}"
    if M > MOST_MODES:
        return f"at most {MOST_MODES} modes, not {M}"
    need = shared_memory(T, max(SMALLEST, pl.next_power_of_2(M)), dtype)
    if limit is not None and need > limit:
        return f"{need} bytes of shared memory a program, not {limit}"
    return None


def shared_memory(T: int, K: int, dtype: Any) -> int:
    """Bytes of shared memory that a program of the gradient may take, with chunks of T samples and K modes.

    Two stages of what it loads, two tiles to turn products around, and where a product of float32 is three of TF32 both
    parts of each matrix. For GPUs with 99 and 163 KiB a program (sm_80, sm_86, sm_120) Triton 3.6 takes that or down to
    half; for sm_90 and sm_100, which have 227 KiB, it may take more, 176 KiB at most.
    """
    dtype = jnp.dtype(dtype)
    split = _precision(dtype, False) is lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    R, size = FEW if split else MANY, dtype.itemsize
    return size * (2 * R * (T + 2 * K) + 2 * R * T + (2 * (4 * K * T + T * T) if split else 0))


def device_limit() -> int | None:
    """Bytes of shared memory that a program may have on the first GPU; None without one, or where XLA does not say."""
    try:
        device, *_ = jax.local_devices(backend="gpu")
    except RuntimeError:
        return None
    return getattr(device, "shared_memory_per_block_optin", None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunks(v: Array, matrices: Matrices, start: Array, interpret: bool) -> tuple[Array, Array]:
    """y like v (H, R, n, T) and the final states, like start (H, R, D, 2, K)."""
    parts, final = _run(v, matrices, start, interpret=interpret)
    return _total(parts), final


def _forward(v: Array, matrices: Matrices, start: Array, interpret: bool) -> tuple[Any, Any]:
    parts, final, entering = _run(v, matrices, start, interpret=interpret, keep=True)
    return (_total(parts), final), (v, matrices, entering)


def _backward(interpret: bool, kept: tuple, cotangents: tuple) -> tuple[Array, Matrices, Array]:
    v, matrices, entering = kept
    w, g_final = cotangents
    parts, g_start, leaving, slopes = _run(w, matrices, g_final, interpret=interpret, keep=True, against=entering)
    H, R, n, _ = v.shape
    u, w, x, g = (z.reshape(H, R * n, -1) for z in (v, w, entering, leaving))

    def products(a: Array, b: Array, like: Array) -> Array:
        found = jnp.einsum("hci,hcj->hij", a, b, preferred_element_type=matrices.decay.dtype)
        return found.reshape(like.shape).astype(like.dtype)

    g_matrices = Matrices(
        jnp.sum(slopes, (1, 2)),
        products(u, g, matrices.into),
        products(x, w, matrices.out),
        products(u, w, matrices.direct),
    )
    return _total(parts), g_matrices, g_start


_chunks.defvjp(_forward, _backward)


def _total(parts: Array) -> Array:
    """The sum over directions."""
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _run(
    v: Array,
    matrices: Matrices,
    start: Array,
    *,
    interpret: bool,
    keep: bool = False,
    against: Array | None = None,
) -> tuple[Array, ...]:
    """Parts of y by direction (D, H, R, n, T), final states, and with keep the states that enter each chunk.

    With the states that entered each chunk of such a run as against, the gradient's run: v is that by y, start that by
    the final states, and what enters a chunk the gradient by what left it; then also the gradient of decay, by
    sequence (H, R, D, 2, K).
    """
    axes, found = "hrnt, hck, htdck, hdckt, hst, hrdck", "dhrnt, hrdck" + ", hrndck" * keep
    rest: tuple[Array, ...] = ()
    if against is not None:
        matrices, rest = _adjoint(matrices), (against,)
        axes, found = f"{axes}, hrndck", f"{found}, hrdck"
    run = functools.partial(_in_segments, interpret=interpret, keep=keep)
    return by_rows(run, f"{axes} -> {found}", rows="hr")(v, *matrices, start, *rest)


def _in_segments(v: Array, *arrays: Array, interpret: bool, keep: bool) -> tuple[Array, ...]:
    """_run on one device; arrays are matrices, start and, for the gradient's run, against."""
    matrices, (start, *against) = Matrices(*arrays[:4]), arrays[4:]
    (H, R, n, T), tail, mirrored = v.shape, start.shape[2:], bool(against)
    S = _segments(v.shape, tail[0])
    against = [x.reshape(H, R * S, n // S, *tail) for x in against]
    run = functools.partial(_launch, v.reshape(H, R * S, n // S, T), matrices, mirrored=mirrored, interpret=interpret)
    starts = start
    if S > 1:
        (ends,) = run(jnp.zeros((H, R * S, *tail), start.dtype), ends_only=True)
        starts, last = _between(matrices.decay, ends.reshape(H, R, S, *tail), start, n // S, mirrored=mirrored)
    y, final, *rest = run(starts.reshape(H, R * S, *tail), *against, keep=keep)
    if keep:
        rest[0] = rest[0].reshape(H, R, n, *tail)
    if mirrored:
        rest[-1] = jnp.sum(rest[-1].reshape(H, R, S, *tail), 2)
    return y.reshape(-1, H, R, n, T), last if S > 1 else final, *rest


def _adjoint(matrices: Matrices) -> Matrices:
    """The transposed system: its inputs are the outputs, and the other way round."""
    decay, into, out, direct = matrices
    conjugate = decay * jnp.asarray([[1.0], [-1.0]], decay.dtype)
    turned = jnp.moveaxis(into, 1, -1), jnp.moveaxis(out, -1, 1)
    return Matrices(conjugate, turned[1], turned[0], jnp.swapaxes(direct, 1, 2))


def _segments(shape: tuple[int, ...], D: int) -> int:
    """How many pieces time is cut into: equal ones, so that none ends in padding."""
    H, R, n, _ = shape
    S = 1
    while n % (2 * S) == 0 and n // S > SHORTEST_SEGMENT and pl.cdiv(S * R, SMALLEST) * H * D < ENOUGH_PROGRAMS:
        S *= 2
    return S


def _between(decay: Array, ends: Array, start: Array, n: int, *, mirrored: bool) -> tuple[Array, Array]:
    """The states that enter each segment of n chunks, like ends (H, R, S, D, 2, K), and those after the last.

    ends are the states after each segment when nothing enters it; start (H, R, D, 2, K) enters the first.
    """

    def aligned(x: Array) -> Array:
        """Segments in the order of each direction's run: its own inverse."""
        ways = (x[..., d, :, :] for d in range(x.shape[-3]))
        return jnp.stack([jnp.flip(w, 0) if (d == 1) != mirrored else w for d, w in enumerate(ways)], axis=-3)

    power = (from_planes(decay) ** n)[:, None, None]
    after = tree(power, aligned(jnp.moveaxis(ends, 2, 0)), start)
    entering = aligned(jnp.concatenate([start[None], after[:-1]]))
    return jnp.moveaxis(entering, 0, 2), after[-1]


def _launch(
    v: Array,
    matrices: Matrices,
    start: Array,
    against: Array | None = None,
    *,
    mirrored: bool,
    interpret: bool,
    keep: bool = False,
    ends_only: bool = False,
) -> list[Array]:
    """[parts of y (D, H, N, n, T),] final states [, those that enter chunks [, the gradient of decay by sequence]]."""
    H, N, n, _ = v.shape
    tail, precision = start.shape[2:], _precision(v.dtype, interpret)
    rows = _rows(N, precision)
    grid = pl.cdiv(N, rows), H, tail[0]
    shapes = [] if ends_only else [jax.ShapeDtypeStruct((tail[0], *v.shape), v.dtype)]
    shapes += [jax.ShapeDtypeStruct(start.shape, start.dtype)]
    shapes += [jax.ShapeDtypeStruct((H, N, n, *tail), v.dtype)] if keep else []
    shapes += [] if against is None else [jax.ShapeDtypeStruct(start.shape, start.dtype)]
    kernel = functools.partial(
        _kernel,
        R=rows,
        D=tail[0],
        mirrored=mirrored,
        ends_only=ends_only,
        keep=keep,
        precision=precision,
        slopes=against is not None,
    )
    options = {} if interpret else {"compiler_params": triton.CompilerParams(num_warps=WARPS, num_stages=STAGES)}
    return pl.pallas_call(kernel, shapes, grid=grid, interpret=interpret, name="ptd_chunks", **options)(
        v, *matrices, start, *([] if against is None else [against])
    )


def _rows(N: int, precision: lax.DotAlgorithmPreset | None) -> int:
    """The rows of a program for N sequences."""
    return FEW if precision is lax.DotAlgorithmPreset.TF32_TF32_F32_X3 or 4 * N <= MANY else MANY


def _precision(dtype: Any, interpret: bool) -> lax.DotAlgorithmPreset | None:
    """Of products of float32: as jax's default says, TF32 or three of them, which round like float32."""
    if interpret or dtype != jnp.float32:
        return None
    rounded = jax.config.jax_default_matmul_precision in ROUNDED
    return lax.DotAlgorithmPreset.TF32_TF32_F32 if rounded else lax.DotAlgorithmPreset.TF32_TF32_F32_X3


def _kernel(
    v: Any,
    decay: Any,
    into: Any,
    out: Any,
    direct: Any,
    start: Any,
    *refs: Any,
    R: int,
    D: int,
    mirrored: bool,
    ends_only: bool,
    keep: bool,
    slopes: bool,
    precision: Any,
) -> None:
    """y = direct v + out x, x = decay x + into v along the chunks of R sequences, of one feature and direction."""
    tile, h, d = (pl.program_id(axis) for axis in range(3))
    (_, N, n, T), K = v.shape, decay.shape[-1]
    against, refs = (refs[0], refs[1:]) if slopes else (None, refs)
    y, refs = (None, refs) if ends_only else (refs[0], refs[1:])
    rows, wide = pl.ds(tile * R, R), start.dtype
    planes = jnp.int32(0), jnp.int32(1)  # interpret mode takes no plain numbers beside others in a masked access
    live = None if N % R == 0 else (tile * R + lax.broadcasted_iota(jnp.int32, (R, 1), 0)) < N

    def load(ref: Any, *at: Any, width: int) -> Array:
        mask = {} if live is None else {"mask": jnp.broadcast_to(live, (R, width)), "other": 0.0}
        return triton.load(ref.at[*at, pl.ds(planes[0], width)], **mask)

    def store(ref: Any, *at: Any, value: Array) -> None:
        mask = {} if live is None else {"mask": jnp.broadcast_to(live, value.shape)}
        triton.store(ref.at[*at, pl.ds(planes[0], value.shape[1])], value.astype(ref.dtype), **mask)

    def dot(a: Array, b: Array) -> Array:
        return lax.dot(a, b, precision=precision, preferred_element_type=wide)

    i_re, i_im = into[h, :, d, 0, :], into[h, :, d, 1, :]
    a_re, a_im = decay[h, 0, :][None, :], decay[h, 1, :][None, :]
    if not ends_only:
        o_re, o_im, w = out[h, d, 0, :, :], out[h, d, 1, :, :], direct[h, :, :]
        if D == 2:  # a share of the samples for each direction, the present for the first
            row, column = (lax.broadcasted_iota(jnp.int32, (T, T), axis) for axis in range(2))
            w = jnp.where((column >= row) == (d == 0), w, jnp.zeros_like(w))

    def chunk(j: Array, carry: tuple) -> tuple:
        x_re, x_im, *sums = carry
        c = jnp.where((d == 1) != mirrored, n - 1 - j, j).astype(jnp.int32)
        u = load(v, h, rows, c, width=T)
        if keep:
            store(refs[1], h, rows, c, d, planes[0], value=x_re)
            store(refs[1], h, rows, c, d, planes[1], value=x_im)
        if slopes:
            b_re, b_im = (load(against, h, rows, c, d, part, width=K).astype(wide) for part in planes)
            sums = [sums[0] + b_re * x_re + b_im * x_im, sums[1] + b_re * x_im - b_im * x_re]
        if not ends_only:
            z = dot(u, w) + dot(x_re.astype(u.dtype), o_re) + dot(x_im.astype(u.dtype), o_im)
            store(y, d, h, rows, c, value=z)
        z_re, z_im = dot(u, i_re), dot(u, i_im)
        return a_re * x_re - a_im * x_im + z_re, a_re * x_im + a_im * x_re + z_im, *sums

    x = tuple(load(start, h, rows, d, part, width=K) for part in planes)
    sums = (jnp.zeros((R, K), wide),) * 2 if slopes else ()
    x_re, x_im, *sums = lax.fori_loop(0, n, chunk, (*x, *sums))
    store(refs[0], h, rows, d, planes[0], value=x_re)
    store(refs[0], h, rows, d, planes[1], value=x_im)
    for part, total in enumerate(sums):
        store(refs[-1], h, rows, d, planes[part], value=total)
