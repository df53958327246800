"""The convolution view of a time-invariant layer: y = K * u with K_l = C A_bar^l B_bar.

Axes: kernels are (..., H, L), time last; signals are (..., L, H).
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Sequence

from . import checks
from .arrays import (
    Array,
    arange,
    as_complex,
    eye,
    imag,
    namespace,
    product,
    real,
    scale,
)
from .recurrence import LowRankTransition, dense_transition, transition_on_planes

#: r^L of the circle |z| = r on which S4's generating function is evaluated. Rounding of K_l is divided by r^l, so that
#: of the last ones grows by 1.4, and no pole is nearer to a point than ln(1/0.7)/(2 pi) = 0.06 of their distance.
CIRCLE = 0.7


def vandermonde(weights: Array, Lambda_bar: Array, L: int, *, kept: Callable[[Array], Array] = lambda x: x) -> Array:
    """K_l = Re sum_n weights_n Lambda_bar_n^l for l = 0 ... L-1 (S4D eq. 6).

    Args:
        weights: complex (..., N).
        Lambda_bar: complex (..., N), broadcastable against weights.
        L: length of the kernel, at least 1.
        kept: its argument, as it is, for a compiler that would else compute it anew in all that it goes into.

    Returns:
        K, real (..., L).

    >>> import numpy as np
    >>> vandermonde(np.array([1 + 0j]), np.array([0.5 + 0j]), 3).tolist()
    [1.0, 0.5, 0.25]
    """
    # With l = j T + t the sum is a product of matrices, of w a^(jT) (L/T, N) and a^t (N, T): no a^l for all n and l.
    Lambda_bar = kept(Lambda_bar)
    near = kept(powers(Lambda_bar, 1 << L.bit_length() // 2))
    far = kept(kept(weights)[..., None] * powers(near[..., -1] * Lambda_bar, -(-L // near.shape[-1])))
    xp = namespace(real(far))
    K = product(
        xp.matrix_transpose(xp.concat([real(far), -imag(far)], axis=-2)), xp.concat([real(near), imag(near)], axis=-2)
    )
    return xp.reshape(K, (*K.shape[:-2], K.shape[-2] * K.shape[-1]))[..., :L]


def powers(Lambda_bar: Array, L: int) -> Array:
    """Lambda_bar^l for l = 0 ... L-1, (..., N, L), by doubling: log2(L) roundings, exact at Lambda_bar = 0."""
    xp = namespace(Lambda_bar)
    block, factor = xp.ones_like(Lambda_bar[..., None]), Lambda_bar[..., None]
    while block.shape[-1] < L:
        block, factor = xp.concat([block, block * factor], axis=-1), factor * factor
    return block[..., :L]


def sums_over_poles(coefficients: Array, poles: Array, circle: Array, pairs: bool) -> Array:
    """Y = i s A - c B with pairs, else A + i B, where A = sum_n alpha_n/D_n and B = sum_n beta_n/D_n.

    D is (c^2 |z|^2 - 4 s^2 - 4i s c Re z)/|z| with pairs, else 2i s - c z.

    Args:
        coefficients: real (2, Q, H, N), alpha and beta.
        poles: real (2, H, N), |z| and 4 Re z/|z| with pairs, else Re z and Im z.
        circle: real (2, F), s and c.
        pairs: whether each pole stands for itself and its conjugate.

    Returns:
        Y as real planes (2, Q, H, F).
    """
    xp, (_, Q, H, N), (s, c) = namespace(poles), coefficients.shape, (circle[0, :], circle[1, :])
    first, second = poles[0, ..., None], poles[1, ..., None]
    if pairs:
        # As factors: near a resonance, where 2 s is c |z|, squares would round before they cancel.
        re, im = (c * first - 2.0 * s) * (c + 2.0 * s / first), -(s * c) * second
    else:
        re, im = -c * first, 2.0 * s - c * second
    size = re * re + im * im
    # One product of matrices for all sums: the inverses of D are made once.
    rows = xp.reshape(xp.permute_dims(coefficients, (2, 0, 1, 3)), (H, 2 * Q, N))
    sums = product(rows, xp.concat([re / size, -im / size], axis=-1))
    sums = xp.permute_dims(xp.reshape(sums, (H, 2, Q, 2, s.shape[0])), (1, 3, 2, 0, 4))
    (A_re, A_im), (B_re, B_im) = ((sums[i, 0, ...], sums[i, 1, ...]) for i in range(2))
    if pairs:
        return xp.stack([-s * A_im - c * B_re, s * A_re - c * B_im], axis=0)
    return xp.stack([A_re - B_im, A_im + B_re], axis=0)


def resolvent_sums(
    numerators: Sequence[Array],
    Lambda: Array,
    step: Array,
    sine: Array,
    cosine: Array,
    conj_sym: bool,
    *,
    sums: Callable[..., Array] = sums_over_poles,
) -> list[Array]:
    """sum_n v_n S_n(h) with S_n = step/(2i sin h - step cos h Lambda_n) for each v: the Cauchy sums of S4 thm 3.

    With conj_sym a pole z = step Lambda and its conjugate have one denominator, divided by |z| so that slow poles stay
    in range: v/(2is - cz) + v^*/(2is - cz^*) = (4is Re v - 2c Re(v z^*))/((2is - cz)(2is - cz^*)).

    Args:
        numerators: complex (..., N) or (..., H, N) each.
        Lambda: complex (H, N) or (N,).
        step: real (H, 1).
        sine: sin h, real (F,).
        cosine: cos h, real (F,).
        conj_sym: the N entries are one of each conjugate pair, and sums run over both halves.
        sums: sums_over_poles, or a backend's own form of it.

    Returns:
        For each v its sums, complex (..., H, F).

    >>> import numpy as np
    >>> one, step = np.ones((1, 1)), np.full((1, 1), 2.0)
    >>> resolvent_sums([one + 0j], -one + 0j, step, np.array([0.0]), np.array([1.0]), False)[0].tolist()
    [[(1+0j)]]
    """
    xp, z = namespace(step), scale(Lambda, step)
    H, N = z.shape
    leading = [v.shape[:-2] for v in numerators]
    counts = [math.prod(axes) for axes in leading]
    re, im = (
        step * xp.concat([_rows(part(v), count, H, N) for v, count in zip(numerators, counts, strict=True)], axis=0)
        for part in (real, imag)
    )
    x, y = real(z), imag(z)
    poles, coefficients = (x, y), (re, im)
    if conj_sym:
        size = xp.sqrt(x * x + y * y)
        poles, coefficients = (size, 4.0 * x / size), (4.0 * re / size, 2.0 * (re * x + im * y) / size)
    Y = sums(*(xp.stack(parts, axis=0) for parts in (coefficients, poles, (sine, cosine))), conj_sym)
    ends, shape = itertools.accumulate(counts), (H, sine.shape[0])
    found = [Y[:, end - count : end, ...] for end, count in zip(ends, counts, strict=True)]
    return [
        as_complex(xp.reshape(part[0, ...], (*axes, *shape)), xp.reshape(part[1, ...], (*axes, *shape)))
        for part, axes in zip(found, leading, strict=True)
    ]


def _rows(x: Array, count: int, H: int, N: int) -> Array:
    """Real (..., N) or (..., H, N) as (count, H, N)."""
    xp = namespace(x)
    return xp.reshape(xp.broadcast_to(x, (*x.shape[:-2], H, N)), (count, H, N))


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

    At the L points r exp(-2ih), h = pi (l + 1/2)/L, of a circle with r^L = q = CIRCLE. With t = (1 - r)/(1 + r) and
    f = 1/(1 - t step Lambda/2), and so with
        S(h) = step f/(2i sin h - cos h (step Lambda - 2t) f),  g = cos h + it sin h,  C~ = (1 + t) C (I + q A_bar^L):
    K^ = exp(ih) [C~ S B - g C~ S P (I + g P^* S P)^{-1} P^* S B],   K_l = q^(-l/L) exp(pi i l/L) ifft(K^)_l.
    S4 takes the L roots of 1. The half-angle form is its own multiplied out: nothing is singular at -1. At 1, which is
    no point of these, S is 1/|Lambda| whatever the step, and the correction cancels it: a mode that hardly decays costs
    three digits and more there, and where it meets a point of the unit circle. With r < 1, S stays below about
    step L/ln(1/q).

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
    _known(L)
    xp = namespace(Lambda)
    conj_sym = transition.conj_sym
    t = math.tanh(-math.log(CIRCLE) / (2 * L))
    z = scale(Lambda, step)
    f = 1.0 / (1.0 - z * (t / 2.0))
    weight = scale(f, step)
    C_tilde = (C + CIRCLE * _after(transition, z, C, L)) * (1.0 + t)

    sine, cosine = _half_angles(L, L - L // 2 if conj_sym else L, like=step)
    g = as_complex(cosine, t * sine)

    columns = [P[..., j] for j in range(P.shape[-1])]
    rows, row = [xp.conj(p) * weight for p in columns], C_tilde * weight
    r = len(columns)
    numerators = [p * q for p in rows for q in columns] + [p * B for p in rows]
    numerators += [row * p for p in columns] + [row * B]
    found = sums(numerators, (z - 2.0 * t) * f, xp.ones_like(step), sine, cosine, conj_sym)
    small = xp.stack([xp.stack(found[i * r : (i + 1) * r], axis=-1) for i in range(r)], axis=-2)
    from_B = xp.stack(found[r * r : r * r + r], axis=-1)
    to_C = xp.stack(found[r * r + r : -1], axis=-1)
    through = xp.sum(to_C * solution_of_small(small * g[..., None, None] + eye(r, like=small), from_B), axis=-1)
    K_hat = as_complex(cosine, sine) * (found[-1] - through * g)
    # With conj_sym the sum over all modes is real, so half of the points tell the rest: the other half are the
    # conjugates of the first L // 2, and add their real parts once more.
    if conj_sym:
        paired = K_hat[..., : L // 2]
        cx = namespace(K_hat)
        K_hat = cx.concat([scale(paired, 2.0), K_hat[..., L // 2 :], cx.zeros_like(paired)], axis=-1)
    lag = arange(L, like=step)
    K, turn = xp.fft.ifft(K_hat, axis=-1), lag * (math.pi / L)
    return (xp.cos(turn) * real(K) - xp.sin(turn) * imag(K)) * xp.exp(lag * (-math.log(CIRCLE) / L))


def _half_angles(L: int, F: int, like: Array) -> tuple[Array, Array]:
    """sin h and cos h at h = pi (l + 1/2)/L for l < F, both negated for h > pi/2, which leaves cauchy's K^ alone.

    As sines of angles with one rounding: where cos h is small, a rounded h would tell it to eps/cos h, and tan h.
    """
    xp = namespace(like)
    at = arange(F, like=like) + 0.5
    at = xp.where(at > L / 2, at - L, at)
    return xp.sin(at * (math.pi / L)), xp.sin((L / 2 - xp.abs(at)) * (math.pi / L))


def solution_of_small(matrix: Array, y: Array) -> Array:
    """x with matrix x = y, matrix (..., r, r) and y (..., r) broadcastable, r = 1, 2, by elimination with a pivot.

    Near a resonance the matrix is a large one of rank 1 and I: cofactors would lose the square of its size.
    """
    xp = namespace(matrix)
    if matrix.shape[-1] == 1:
        return y / matrix[..., 0]
    columns = [(x[..., 0], x[..., 1]) for x in (matrix[..., 0], matrix[..., 1], y)]
    below = _size(columns[0][1]) > _size(columns[0][0])
    (a, c), (b, d), (p, q) = ((xp.where(below, x_1, x_0), xp.where(below, x_0, x_1)) for x_0, x_1 in columns)
    ratio = c / a
    x_1 = (q - ratio * p) / (d - ratio * b)
    return xp.stack([(p - b * x_1) / a, x_1], axis=-1)


def _size(x: Array) -> Array:
    """|Re x| + |Im x|."""
    xp = namespace(real(x))
    return xp.abs(real(x)) + xp.abs(imag(x))


def _after(transition: LowRankTransition, z: Array, C: Array, L: int) -> Array:
    """C A_bar^L, (H, N): with conj_sym that of C's row over both halves, as the first half of a row.

    From A_bar - I = diag(z/(1 - z/2)) - left right^*, z = step Lambda: A_bar itself is rounded relative to 1, not to
    what a small step adds to it, and L times.
    """
    beyond = LowRankTransition(z / (1.0 - z / 2.0), transition.left, transition.right, transition.conj_sym)
    if not transition.conj_sym:
        return _after_powers(C, dense_transition(beyond), L)
    xp, N = namespace(real(C)), C.shape[-1]
    row = xp.concat([real(C), -imag(C)], axis=-1)  # C x + C^* x^* = 2 row (Re x, Im x)
    row = _after_powers(row, transition_on_planes(beyond), L)
    return as_complex(row[..., :N], -row[..., N:])


def _after_powers(row: Array, X: Array, L: int) -> Array:
    """row (I + X)^L for row (..., N) and X (..., N, N), by repeated squaring: (I + X)^2 - I = 2X + X^2."""
    row = row[..., None, :]
    while True:
        if L % 2:
            row = row + product(row, X)
        L //= 2
        if L == 0:
            return row[..., 0, :]
        X = 2.0 * X + product(X, X)


def _known(L: int) -> None:
    if not isinstance(L, numbers.Integral):
        raise checks.fail("L", "a length that is known", L, "an exporter may leave the batch open, but not L")


def matrix_power(A: Array, L: int) -> Array:
    """A^L for (..., N, N) by repeated squaring, L >= 1."""
    _known(L)
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
