"""The convolution view of a time-invariant layer: y = K * u with K_l = C A_bar^l B_bar.

Axes: kernels are (..., H, L), time last; signals are (..., L, H).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .arrays import Array, arange, as_complex, eye, imaginary, matmul, namespace, product, real, scale, thin_product
from .discretization import inverse_of_small
from .recurrence import LowRankTransition, dense_transition


def vandermonde(weights: Array, Lambda_bar: Array, L: int) -> Array:
    """K_l = Re sum_n weights_n Lambda_bar_n^l for l = 0 ... L-1 (S4D eq. 6).

    Args:
        weights: complex (..., N).
        Lambda_bar: complex (..., N), broadcastable against weights.
        L: length of the kernel, at least 1.

    Returns:
        K, real (..., L).

    >>> import numpy as np
    >>> vandermonde(np.array([1 + 0j]), np.array([0.5 + 0j]), 3).tolist()
    [1.0, 0.5, 0.25]
    """
    return real(namespace(weights).sum(weights[..., None] * powers(Lambda_bar, L), axis=-2))


def powers(Lambda_bar: Array, L: int) -> Array:
    """Lambda_bar^l for l = 0 ... L-1, (..., N, L), by doubling: log2(L) roundings, exact at Lambda_bar = 0."""
    xp = namespace(Lambda_bar)
    block, factor = xp.ones_like(Lambda_bar[..., None]), Lambda_bar[..., None]
    while block.shape[-1] < L:
        block, factor = xp.concat([block, block * factor], axis=-1), factor * factor
    return block[..., :L]


def resolvent_sums(
    numerators: Sequence[Array], Lambda: Array, step: Array, sine: Array, cosine: Array, conj_sym: bool
) -> list[Array]:
    """sum_n v_n S_n(h) with S_n = step/(2i sin h - step cos h Lambda_n) for each v: the Cauchy sums of S4 thm 3.

    Args:
        numerators: complex (..., N) or (..., H, N) each.
        Lambda: complex (H, N) or (N,).
        step: real (H, 1).
        sine: sin h, real (F,).
        cosine: cos h, real (F,).
        conj_sym: the N entries are one of each conjugate pair, and sums run over both halves.

    Returns:
        For each v its sums, complex (..., H, F).

    >>> import numpy as np
    >>> one, step = np.ones((1, 1)), np.full((1, 1), 2.0)
    >>> resolvent_sums([one + 0j], -one + 0j, step, np.array([0.0]), np.array([1.0]), False)[0].tolist()
    [[(1+0j)]]
    """
    xp, step = namespace(Lambda), step[..., None]
    halves = ((Lambda, lambda v: v), (xp.conj(Lambda), xp.conj))[: 2 if conj_sym else 1]
    S = [scale(1.0 / (imaginary(2.0 * sine) - scale(at[..., None], step * cosine)), step) for at, _ in halves]
    over = [
        [xp.sum(half(v)[..., None] * s, axis=-2) for s, (_, half) in zip(S, halves, strict=True)] for v in numerators
    ]
    return [sums[0] + sums[1] if conj_sym else sums[0] for sums in over]


def cauchy(
    transition: LowRankTransition,
    Lambda: Array,
    P: Array,
    B: Array,
    C: Array,
    step: Array,
    L: int,
    *,
    sums: Callable[..., list[Array]] = resolvent_sums,
) -> Array:
    """K_l = C A_bar^l B_bar of a bilinear diagonal-plus-low-rank system through its generating function (S4 thm 3).

    At the L roots of unity z = exp(-2ih), h = pi l / L, with S(h) = step/(2i sin h - step cos h Lambda) and
    C~ = C (I - A_bar^L):   K^ = exp(ih) [C~ S B - cos h C~ S P (I + cos h P^* S P)^{-1} P^* S B];   K = ifft(K^).
    The half-angle form is S4's multiplied out: nothing is singular at z = -1 and nothing cancels at z = 1.

    Args:
        transition: the discretised A_bar, (H, N) and (H, N, r); its conj_sym is that of all arguments.
        Lambda: complex (H, N) or (N,).
        P: complex (..., N, r).
        B: complex (..., H, N); leading axes give that many kernels.
        C: complex (H, N).
        step: real (H, 1).
        L: length of the kernel, at least 1.
        sums: resolvent_sums, or a backend's own form of it.

    Returns:
        K, real (..., H, L): with conj_sym twice the real part over the stored half, else the real part.
    """
    xp = namespace(Lambda)
    conj_sym = transition.conj_sym
    powered = matrix_power(dense_transition(transition), L)
    row = xp.concat([C, xp.conj(C)], axis=-1) if conj_sym else C
    C_tilde = (row - matmul(row[..., None, :], powered)[..., 0, :])[..., : C.shape[-1]]

    # With conj_sym the sum over all modes is real, so half of the frequencies tell the rest.
    h = arange(L // 2 + 1 if conj_sym else L, like=step) * (math.pi / L)
    sine, cosine = xp.sin(h), xp.cos(h)

    columns = [P[..., j] for j in range(P.shape[-1])]
    r = len(columns)
    numerators = [xp.conj(p) * q for p in columns for q in columns] + [xp.conj(p) * B for p in columns]
    numerators += [C_tilde * p for p in columns] + [C_tilde * B]
    found = sums(numerators, Lambda, step, sine, cosine, conj_sym)
    small = xp.stack([xp.stack(found[i * r : (i + 1) * r], axis=-1) for i in range(r)], axis=-2)
    W = inverse_of_small(scale(small, cosine[..., None, None]) + eye(r, like=small))
    from_B = xp.stack(found[r * r : r * r + r], axis=-1)[..., None]
    to_C = xp.stack(found[r * r + r : -1], axis=-1)[..., None, :]
    through = thin_product(thin_product(to_C, W), from_B)
    K_hat = as_complex(cosine, sine) * (found[-1] - scale(through[..., 0, 0], cosine))
    return xp.fft.irfft(K_hat, n=L, axis=-1) if conj_sym else real(xp.fft.ifft(K_hat, axis=-1))


def matrix_power(A: Array, L: int) -> Array:
    """A^L for (..., N, N) by repeated squaring, L >= 1."""
    result = None
    while True:
        if L % 2:
            result = A if result is None else product(result, A)
        L //= 2
        if L == 0:
            return result
        A = product(A, A)


def causal_convolution(u: Array, K: Array) -> Array:
    """y_k = sum_{j <= k} K_{k-j} u_j per channel, by FFT of length 2L: linear, not circular.

    Args:
        u: real (..., L, H).
        K: real (..., H, L), leading axes broadcastable against u's.

    Returns:
        y, real (..., L, H). Error about eps log2(2L) ||K||_2 ||u||_2, uniform over k.

    >>> import numpy as np
    >>> causal_convolution(np.array([[1.0], [2.0]]), np.array([[1.0, 10.0]]))[:, 0].round(9).tolist()
    [1.0, 12.0]
    """
    xp = namespace(u)
    L = u.shape[-2]
    signal = xp.fft.rfft(xp.matrix_transpose(u), n=2 * L, axis=-1)
    return xp.matrix_transpose(xp.fft.irfft(signal * xp.fft.rfft(K, n=2 * L, axis=-1), n=2 * L, axis=-1)[..., :L])


def causal_convolution_direct(u: Array, K: Array) -> Array:
    """The sum that causal_convolution defines, term by term: the definition, O(L^2).

    >>> import numpy as np
    >>> causal_convolution_direct(np.array([[1.0], [2.0]]), np.array([[1.0, 10.0]]))[:, 0].tolist()
    [1.0, 12.0]
    """
    xp = namespace(u)
    K = xp.matrix_transpose(K)
    rows = [xp.sum(xp.flip(K[..., : k + 1, :], axis=-2) * u[..., : k + 1, :], axis=-2) for k in range(u.shape[-2])]
    return xp.stack(rows, axis=-2)


def mixing_convolution(u: Array, K: Array) -> Array:
    """y_k = sum_{j <= k} K_{k-j} u_j with matrix kernels (the MIMO form of S5), by FFT.

    Args:
        u: real (..., L, H_in).
        K: real (L, H_out, H_in).

    Returns:
        y, real (..., L, H_out).
    """
    xp = namespace(u)
    L = u.shape[-2]
    signal = xp.fft.rfft(u, n=2 * L, axis=-2)
    product = (xp.fft.rfft(K, n=2 * L, axis=0) @ signal[..., None])[..., 0]
    return xp.fft.irfft(product, n=2 * L, axis=-2)[..., :L, :]
