"""The chunked view of a time-invariant layer: matrix products over T samples at once, one short recurrence.

With chunks of T samples, the state that enters chunk c obeys a recurrence T times shorter than the sequence, and all
else is a product with a fixed real matrix:

    x_c = Lambda_bar^T x_{c-1} + sum_j Lambda_bar^(T-1-j) B_bar u_{cT+j}                            ("into")
    y_{cT+i} = w Re(C Lambda_bar^(i+1) x_{c-1}) + sum_{j<=i} K_{i-j} u_{cT+j},  K_l = w Re(C Lambda_bar^l B_bar)
                         ("out")                              ("direct")

With A_bar for Lambda_bar the same holds of a system that is not diagonal. A right-to-left run mirrors it, and shares
the direct product with the left-to-right one. States are real planes (2, M) of real and imaginary parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import recurrence
from .arrays import Array, as_planes, astype, from_planes, namespace, product, real


@dataclass(frozen=True)
class ChunkSystem:
    """The matrices of a layer over chunks of T samples, for D = 1 or 2 directions.

    Attributes:
        decay: Lambda_bar^T, complex (M,), or (H, M) per feature; A_bar^T of a system that is not diagonal as a real
            matrix (H, 2, M, 2, M), from states to states.
        into: real (T H, D 2 M), or (H, T, D 2 M) per feature: from the samples of a chunk to the drive of its states.
        out: real (D 2 M, T H), or (H, D 2 M, T): from the states that enter a chunk to its outputs.
        direct: real (T H, T H), or (H, T, T): from the samples of a chunk to its outputs, D u included.
    """

    decay: Array
    into: Array
    out: Array
    direct: Array


def carries(
    Lambda_bar: Array,
    drive: Array,
    state: Array | None = None,
    *,
    scan: Callable[..., Array] = recurrence.scan,
) -> tuple[Array, Array]:
    """The states that enter each chunk, and those that leave the last, computed in the precision of Lambda_bar.

    Args:
        Lambda_bar: complex (M,), or (H, M) per feature, the first axis of drive.
        drive: real ([H,] ..., n, D, 2, M), D = 1 (left to right) or 2 (then right to left).
        state: real (..., 2, M), the state before the first chunk of a left-to-right run; zero if None.
        scan: runs the recurrence.

    Returns:
        entering, real (..., n, D, 2, M): for direction 0 the state after chunk c - 1, for direction 1 that of chunk
        c + 1, in the dtype of drive; and final, real (..., D, 2, M).
    """
    xp = namespace(drive)
    entering, final = [], []
    for direction in range(drive.shape[-3]):
        d = astype(drive[..., direction, :, :], real(Lambda_bar))
        d = xp.flip(d, axis=-3) if direction else d
        before = xp.zeros_like(d[..., 0, :, :]) if state is None or direction else state
        x0, d = from_planes(before), from_planes(d)
        coefficient = Lambda_bar
        if Lambda_bar.ndim > 1:
            H, M = Lambda_bar.shape
            cx = namespace(Lambda_bar)
            coefficient = cx.broadcast_to(cx.reshape(Lambda_bar, (H, *(1,) * (d.ndim - 2), M)), d.shape)
        x = as_planes(scan(coefficient, d, x0))
        final.append(x[..., -1, :, :])
        x = xp.concat([before[..., None, :, :], x[..., :-1, :, :]], axis=-3)
        entering.append(astype(xp.flip(x, axis=-3) if direction else x, drive))
    return xp.stack(entering, axis=-3), xp.stack(final, axis=-3)


def dense_carries(transition: Array, drive: Array, state: Array | None = None) -> tuple[Array, Array]:
    """carries with a real matrix (H, 2, M, 2, M) from states to states as transition; axes are those of carries."""
    xp, (H, _, M) = namespace(drive), transition.shape[:3]
    *batch, n, D, _, _ = drive.shape[1:]
    A = xp.reshape(transition, (H, *(1,) * len(batch), 2 * M, 2 * M))
    d = xp.reshape(astype(drive, transition), (H, *batch, n, D, 2 * M))
    entering, final = [], []
    for direction in range(D):
        x = xp.zeros_like(d[..., 0, direction, :])
        if state is not None and direction == 0:
            x = xp.reshape(state, x.shape)
        states = [x]
        for c in range(n - 1, -1, -1) if direction else range(n):
            x = product(x[..., None, :], A)[..., 0, :] + d[..., c, direction, :]
            states.append(x)
        entering.append(xp.stack(states[:n][:: -1 if direction else 1], axis=-2))
        final.append(x)
    shape = (*drive.shape[:-2], 2, M)
    return (
        astype(xp.reshape(xp.stack(entering, axis=-2), shape), drive),
        xp.reshape(xp.stack(final, axis=-2), (H, *batch, D, 2, M)),
    )


def orbits(A: Array, row: Array, columns: Array, T: int) -> tuple[Array, Array, Array]:
    """row A^t and A^(t+1) columns for t = 0 ... T-1, and A^T: what a chunk takes in, gives out and leaves behind.

    By doubling, with one chain of squares for all. Powers of a transition lose nothing: its norm is at most one.

    Args:
        A: real (H, n, n).
        row: real (H, n).
        columns: real (H, n, D).
        T: at least 1.

    Returns:
        Real (H, T, n), (H, D, n, T) and (H, n, n).

    >>> import numpy as np
    >>> rows, columns, whole = orbits(np.array([[[2.0]]]), np.array([[1.0]]), np.array([[[3.0]]]), 3)
    >>> rows.ravel().tolist(), columns.ravel().tolist(), whole.ravel().tolist()
    ([1.0, 2.0, 4.0], [6.0, 12.0, 24.0], [8.0])
    """
    xp, (H, n, D) = namespace(A), columns.shape
    rows, columns, power, whole = row[:, None, :], product(A, columns), A, None
    for k in range(T.bit_length()):
        power = product(power, power) if k else A
        if (T >> k) % 2:
            whole = power if whole is None else product(whole, power)
        if rows.shape[1] < T:
            rows = xp.concat([rows, product(rows, power)], axis=1)
            columns = xp.concat([columns, product(power, columns)], axis=2)
    columns = xp.reshape(columns[:, :, : T * D], (H, n, T, D))
    return rows[:, :T, :], xp.permute_dims(columns, (0, 3, 1, 2)), whole


def toeplitz(causal: Array, anticausal: Array | None) -> Array:
    """The blocks M[j, i] = causal[i - j] for i >= j, anticausal[j - i] for j > i: (T, ...) -> (T, T, ...).

    By reshaping alone: rows of 2T entries cut to 2T - 1 move one place per row. anticausal[0] is not used.

    >>> import numpy as np
    >>> toeplitz(np.array([1, 2]), np.array([0, 9])).tolist()
    [[1, 2], [9, 1]]
    """
    xp = namespace(causal)
    T, rest = causal.shape[0], causal.shape[1:]
    pad = xp.zeros_like(causal[:1, ...])
    lower = xp.zeros_like(causal[1:, ...]) if anticausal is None else xp.flip(anticausal[1:, ...], axis=0)
    row = xp.concat([causal, pad, lower], axis=0)
    rows = xp.broadcast_to(row[None, ...], (T, 2 * T, *rest))
    rows = xp.reshape(rows, (2 * T * T, *rest))[: T * (2 * T - 1), ...]
    return xp.reshape(rows, (T, 2 * T - 1, *rest))[:, :T, ...]


def split(u: Array, T: int) -> Array:
    """u (..., L, H) as chunks (..., n, T, H), padded with zeros at the end."""
    xp = namespace(u)
    *batch, L, H = u.shape
    n = -(-L // T)
    if n * T > L:
        u = xp.concat([u, xp.zeros_like(xp.broadcast_to(u[..., :1, :], (*batch, n * T - L, H)))], axis=-2)
    return xp.reshape(u, (*batch, n, T, H))


def join(y: Array, L: int) -> Array:
    """Chunks (..., n, T, H) as a sequence (..., L, H)."""
    *batch, n, T, H = y.shape
    return namespace(y).reshape(y, (*batch, n * T, H))[..., :L, :]


def chunk_length(layer: Any, L: int) -> int:
    """T for a layer on L samples: the direct product grows with T, the scan shrinks.

    For S5 the direct product is (T H)^2 per chunk, so T stays below 512/H or so; per feature it is T^2.
    """
    wanted = 64 if len(layer.state_axes) == 2 else max(4, min(32, 512 // layer.d_model))
    return max(1, min(wanted, L))
