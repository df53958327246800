"""Linear recurrences over the time axis, as plain definitions. Backends replace them with parallel forms.

Axes: x and drive are (..., L, *modes); time-invariant coefficients are (*modes), per-step ones (..., L, *modes).
"""

from __future__ import annotations

from .arrays import Array, eye, imag, namespace, real, scale, thin_product


def scan(Lambda_bar: Array, drive: Array, state: Array | None = None, resets: Array | None = None) -> Array:
    """All states of the diagonal recurrence x_k = Lambda_bar_k x_{k-1} + drive_k (S5 eq. 7).

    Args:
        Lambda_bar: complex (M,) or, per step, broadcastable to (..., L, M).
        drive: complex (..., L, M), the input B_bar u_k.
        state: complex x_{-1}, broadcastable to (..., M); zero if None.
        resets: bool (..., L); where True, x_{k-1} counts as zero (a new sequence begins at k).

    Returns:
        x, complex (..., L, M), L >= 1.

    >>> import numpy as np
    >>> scan(np.array([0.5 + 0j]), np.ones((3, 1), complex))[:, 0].real.tolist()
    [1.0, 1.5, 1.75]
    """
    xp = namespace(drive)
    per_step = Lambda_bar.ndim > 1
    x = xp.zeros_like(drive[..., 0, :]) if state is None else state
    states = []
    for k in range(drive.shape[-2]):
        if resets is not None:
            x = xp.where(resets[..., k, None], xp.zeros_like(x), x)
        x = (Lambda_bar[..., k, :] if per_step else Lambda_bar) * x + drive[..., k, :]
        states.append(x)
    return xp.stack(states, axis=-2)


class LowRankTransition:
    """The transition x -> diagonal * x - left (right^* x) of a diagonal-plus-low-rank recurrence.

    diagonal is complex (..., N); left and right are (..., N, r). With conj_sym the N entries are one of each
    conjugate pair, and right^* x sums over both halves: 2 Re(right^* x).
    """

    # A plain class: a tracing compiler (torch 2.11) loses the fields of a frozen dataclass.
    def __init__(self, diagonal: Array, left: Array, right: Array, conj_sym: bool):
        self.diagonal, self.left, self.right, self.conj_sym = diagonal, left, right, conj_sym

    def __call__(self, x: Array) -> Array:
        """One application to x (..., N)."""
        xp = namespace(x)
        return self.diagonal * x - xp.sum(self.left * self.project(x)[..., None, :], axis=-1)

    def project(self, x: Array) -> Array:
        """right^* x, (..., r)."""
        xp = namespace(x)
        inner = xp.sum(xp.conj(self.right) * x[..., None], axis=-2)
        return xp.astype(2.0 * real(inner), x.dtype) if self.conj_sym else inner

    def at(self, k: int) -> LowRankTransition:
        """The transition of step k, where the coefficients carry a time axis before (H, N)."""
        return LowRankTransition(
            self.diagonal[..., k, :, :],
            self.left[..., k, :, :, :],
            self.right[..., k, :, :, :],
            self.conj_sym,
        )


def scan_low_rank(
    transition: LowRankTransition, drive: Array, state: Array | None = None, resets: Array | None = None
) -> Array:
    """All states of x_k = A_bar x_{k-1} + drive_k with a diagonal-plus-low-rank A_bar per channel (S4 eq. 4).

    Args:
        transition: coefficients (H, N) and (H, N, r), or (..., L, H, N) and (..., L, H, N, r) per step.
        drive: complex (..., L, H, N).
        state: complex x_{-1}, (..., H, N); zero if None.
        resets: bool (..., L); where True, x_{k-1} counts as zero.

    Returns:
        x, complex (..., L, H, N), L >= 1.
    """
    xp = namespace(drive)
    per_step = transition.diagonal.ndim > 2
    x = xp.zeros_like(drive[..., 0, :, :]) if state is None else state
    states = []
    for k in range(drive.shape[-3]):
        if resets is not None:
            x = xp.where(resets[..., k, None, None], xp.zeros_like(x), x)
        x = (transition.at(k) if per_step else transition)(x) + drive[..., k, :, :]
        states.append(x)
    return xp.stack(states, axis=-3)


def dense_transition(transition: LowRankTransition) -> Array:
    """The matrix (H, M, M) of a time-invariant transition; with conj_sym M = 2N on (x, conj x), else M = N."""
    xp = namespace(transition.diagonal)
    diagonal, left, right = transition.diagonal, transition.left, transition.right
    if transition.conj_sym:
        diagonal, left, right = (
            xp.concat([part, xp.conj(part)], axis=axis) for part, axis in ((diagonal, -1), (left, -2), (right, -2))
        )
    on_diagonal = scale(diagonal[..., None, :], eye(diagonal.shape[-1], like=real(diagonal)))
    return on_diagonal - thin_product(left, xp.conj(xp.matrix_transpose(right)))


def transition_on_planes(transition: LowRankTransition) -> Array:
    """The real matrix (H, 2N, 2N) of a time-invariant transition on (Re x, Im x).

    With conj_sym its powers cost a quarter of those of dense_transition, which is similar to it.
    """
    re, im, left, right = real(transition.diagonal), imag(transition.diagonal), transition.left, transition.right
    xp, one = namespace(re), eye(re.shape[-1], like=re)
    re, im = re[..., None] * one, im[..., None] * one
    turned = xp.concat([xp.concat([re, -im], axis=-1), xp.concat([im, re], axis=-1)], axis=-2)
    left, right = (_columns_on_planes(x, transition.conj_sym) for x in (left, right))
    through = thin_product(left, xp.matrix_transpose(right))
    return turned - (2.0 * through if transition.conj_sym else through)


def _columns_on_planes(x: Array, real_products: bool) -> Array:
    """x (..., N, r) as (..., 2N, r), for the real parts of products, else beside it i x for the imaginary ones."""
    xp, re, im = namespace(real(x)), real(x), imag(x)
    own = xp.concat([re, im], axis=-2)
    return own if real_products else xp.concat([own, xp.concat([-im, re], axis=-2)], axis=-1)
