"""Sums of powers as Triton kernels, and their gradients.

With T near sqrt(L), a^l = a^(T j) a^t for l = T j + t: two tables of about sqrt(L) powers a mode, computed in double
precision and rounded once, hold all of them to three roundings whatever the lag, and a kernel of L lags is a product
of the two over modes. Nothing of N x L is ever written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: Modes and entries of a tile of a table, and its warps.
TABLE, TABLE_WARPS = (16, 64), 4

#: Tile of the product (large steps, small steps, modes), its warps and stages.
PRODUCT, PRODUCT_WARPS, PRODUCT_STAGES = (64, 64, 32), 4, 3

#: The same of the gradient's sums, whose inner axis is time, and the programs that keep the device busy.
SUMS, SUMS_WARPS, SUMS_STAGES, PROGRAMS = (32, 16, 32), 4, 3, 1056


@triton.jit(do_not_specialize=["shift", "bits"])
def _powers(
    a, weights, table, N, G, count, shift, bits, MODES: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """Entries of a^(k 2^shift), k < count, as planes, of one row; with weights of the conjugate of w a^(k 2^shift).

    bits is how many k has.
    """
    r = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * MODES + tl.arange(0, MODES)
    k = tl.program_id(2) * ENTRIES + tl.arange(0, ENTRIES)
    live = n < N
    at = a + (r % G) * 2 * N + n
    s_re = tl.load(at, mask=live, other=0.0).to(tl.float64)
    s_im = tl.load(at + N, mask=live, other=0.0).to(tl.float64)
    for _ in range(shift):
        s_re, s_im = s_re * s_re - s_im * s_im, 2.0 * s_re * s_im
    p_re = tl.full((MODES, ENTRIES), 1.0, tl.float64)
    p_im = tl.zeros((MODES, ENTRIES), tl.float64)
    if weights is not None:
        at = weights + r * 2 * N + n
        p_re += tl.load(at, mask=live, other=0.0).to(tl.float64)[:, None] - 1.0
        p_im += tl.load(at + N, mask=live, other=0.0).to(tl.float64)[:, None]
    for bit in range(bits):
        taken = (((k >> bit) & 1) == 1)[None, :]
        z_re = p_re * s_re[:, None] - p_im * s_im[:, None]
        z_im = p_re * s_im[:, None] + p_im * s_re[:, None]
        p_re, p_im = tl.where(taken, z_re, p_re), tl.where(taken, z_im, p_im)
        s_re, s_im = s_re * s_re - s_im * s_im, 2.0 * s_re * s_im
    if weights is not None:
        p_im = -p_im
    here = table + r * 2 * N * count + (n[:, None] * count + k[None, :])
    mask = live[:, None] & (k < count)[None, :]
    tl.store(here, p_re.to(tl.float32), mask=mask)
    tl.store(here + N * count, p_im.to(tl.float32), mask=mask)


@triton.jit
def _product(
    large, small, K, N, G, L, J, T,
    BJ: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of K[T j + t] = Re sum_n conj(large[n, j]) small[n, t] of one row."""
    r = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    t = tl.program_id(2) * BT + tl.arange(0, BT)
    large_r, small_r = large + r * 2 * N * J, small + (r % G) * 2 * N * T
    total = tl.zeros((BJ, BT), tl.float32)
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)
        at = large_r + (n[None, :] * J + j[:, None])
        seen = (n < N)[None, :] & (j < J)[:, None]
        x_re = tl.load(at, mask=seen, other=0.0)
        x_im = tl.load(at + N * J, mask=seen, other=0.0)
        at = small_r + (n[:, None] * T + t[None, :])
        seen = (n < N)[:, None] & (t < T)[None, :]
        total = tl.dot(x_re, tl.load(at, mask=seen, other=0.0), total, input_precision="ieee")
        total = tl.dot(x_im, tl.load(at + N * T, mask=seen, other=0.0), total, input_precision="ieee")
    lag = j[:, None] * T + t[None, :]
    tl.store(K + r * L + lag, total, mask=(lag < L) & (t < T)[None, :])


@triton.jit
def _sums(
    grad, large, small, sums, N, G, L, J, T, share,
    BJ: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """sum_l g_l a^l and sum_l l g_l a^(l-1) of one row over a share of the large steps, as four planes."""
    r = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(2) * share
    live = n < N
    grad_r, small_r, large_r = grad + r * L, small + (r % G) * 2 * N * T, large + (r % G) * 2 * N * J
    w_re = tl.zeros((BN,), tl.float32)
    w_im = tl.zeros((BN,), tl.float32)
    a_re = tl.zeros((BN,), tl.float32)
    a_im = tl.zeros((BN,), tl.float32)
    for j0 in range(first, tl.minimum(first + share, J), BJ):
        j = j0 + tl.arange(0, BJ)
        wz_re = tl.zeros((BJ, BN), tl.float32)
        wz_im = tl.zeros((BJ, BN), tl.float32)
        az_re = tl.zeros((BJ, BN), tl.float32)
        az_im = tl.zeros((BJ, BN), tl.float32)
        for t0 in range(0, T, BT):
            t = t0 + tl.arange(0, BT)
            lag = j[:, None] * T + t[None, :]
            inside = (t < T)[None, :]
            g = tl.load(grad_r + lag, mask=inside & (lag < L), other=0.0)
            after = tl.load(grad_r + lag + 1, mask=inside & (lag + 1 < L), other=0.0)
            after *= (lag + 1).to(tl.float32)
            at = small_r + (n[None, :] * T + t[:, None])
            seen = live[None, :] & (t < T)[:, None]
            y_re = tl.load(at, mask=seen, other=0.0)
            y_im = tl.load(at + N * T, mask=seen, other=0.0)
            wz_re = tl.dot(g, y_re, wz_re, input_precision="ieee")
            wz_im = tl.dot(g, y_im, wz_im, input_precision="ieee")
            az_re = tl.dot(after, y_re, az_re, input_precision="ieee")
            az_im = tl.dot(after, y_im, az_im, input_precision="ieee")
        at = large_r + (n[None, :] * J + j[:, None])
        seen = live[None, :] & (j < J)[:, None]
        x_re = tl.load(at, mask=seen, other=0.0)
        x_im = tl.load(at + N * J, mask=seen, other=0.0)
        w_re += tl.sum(x_re * wz_re - x_im * wz_im, 0)
        w_im += tl.sum(x_re * wz_im + x_im * wz_re, 0)
        a_re += tl.sum(x_re * az_re - x_im * az_im, 0)
        a_im += tl.sum(x_re * az_im + x_im * az_re, 0)
    at = sums + (tl.program_id(2).to(tl.int64) * tl.num_programs(0) + r) * 4 * N + n
    tl.store(at, w_re, mask=live)
    tl.store(at + N, w_im, mask=live)
    tl.store(at + 2 * N, a_re, mask=live)
    tl.store(at + 3 * N, a_im, mask=live)


def _steps(L: int) -> tuple[int, int]:
    """The exponent of T, a power of two near sqrt(L) and at least 16, and J with J T >= L."""
    shift = max(4, ((L - 1).bit_length() + 1) // 2)
    return shift, -(-L >> shift)


def _table(a: Tensor, weights: Tensor | None, count: int, shift: int) -> Tensor:
    """a^(k 2^shift) for k < count, (R, 2, N, count), or with weights the conjugate of its products with them."""
    G, _, N = a.shape
    R = G if weights is None else len(weights)
    table = a.new_empty((R, 2, N, count))
    grid = (R, triton.cdiv(N, TABLE[0]), triton.cdiv(count, TABLE[1]))
    _powers[grid](
        a, weights, table, N, G, count, shift, (count - 1).bit_length(),
        MODES=TABLE[0], ENTRIES=TABLE[1], num_warps=TABLE_WARPS,
    )  # fmt: skip
    return table


def _fitted(tile: tuple[int, int, int], J: int, T: int) -> dict[str, int]:
    """Tile sizes, no larger than what they cover."""
    J, T = (max(16, triton.next_power_of_2(size)) for size in (J, T))
    return {"BJ": min(tile[0], J), "BT": min(tile[1], T), "BN": tile[2]}


def vandermonde(weights: Tensor, a: Tensor, L: int) -> Tensor:
    """Re sum_n w_n a_n^l for l < L, (R, L), of contiguous planes (R, 2, N) and (G, 2, N); row r takes a of r mod G."""
    (R, _, N), G = weights.shape, len(a)
    shift, J = _steps(L)
    T = 1 << shift
    large, small = _table(a, weights, J, shift), _table(a, None, T, 0)
    K = weights.new_empty((R, L))
    sizes = _fitted(PRODUCT, J, T)
    _product[(R, triton.cdiv(J, sizes["BJ"]), T // sizes["BT"])](
        large, small, K, N, G, L, J, T, **sizes, num_warps=PRODUCT_WARPS, num_stages=PRODUCT_STAGES
    )
    return K


def vandermonde_sums(grad: Tensor, a: Tensor) -> Tensor:
    """sum_l g_l a^l and sum_l l g_l a^(l-1), planes (R, 2, 2, N), of contiguous grad (R, L) and a (G, 2, N)."""
    (R, L), (G, _, N) = grad.shape, a.shape
    shift, J = _steps(L)
    T = 1 << shift
    large, small = _table(a, None, J, shift), _table(a, None, T, 0)
    sizes = _fitted(SUMS, J, T)
    blocks = triton.cdiv(N, sizes["BN"])
    tiles = triton.cdiv(J, sizes["BJ"])
    share = triton.cdiv(tiles, max(1, PROGRAMS // (R * blocks))) * sizes["BJ"]
    parts = triton.cdiv(J, share)
    sums = grad.new_empty((parts, R, 2, 2, N))
    _sums[(R, blocks, parts)](
        grad, large, small, sums, N, G, L, J, T, share, **sizes, num_warps=SUMS_WARPS, num_stages=SUMS_STAGES
    )
    return sums.sum(0)
