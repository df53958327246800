"""Kernels of the torch backend: the recurrence as an operator of its own, the rest as core has it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ptd import chunks, convolution, recurrence
from ptd.arrays import Array, as_planes, from_planes
from ptd.kernels import Kernels, by_kind, by_size_on_cpu
from ptd.recurrence import LowRankTransition

from .cauchy import resolvent_sums
from .diagonal import diagonal_chunks
from .orbits import orbits
from .per_feature_chunks import per_feature_chunks
from .scan import kernel_path
from .transforms import forward_mode
from .transforms import scan as scan_planes
from .vandermonde import vandermonde


def scan(Lambda_bar: Array, drive: Array, state: Array | None = None, resets: Tensor | None = None) -> Array:
    """ptd.recurrence.scan on pairs; in forward mode the definition itself."""
    if forward_mode():
        return recurrence.scan(Lambda_bar, drive, state, resets)
    *batch, L, M = drive.shape
    d = as_planes(drive).reshape(-1, L, 1, 2, M)
    a = as_planes(Lambda_bar)
    if Lambda_bar.ndim > 1 or resets is not None:
        a = a.expand(*batch, L, 2, M)
        if resets is not None:
            a = torch.where(resets[..., None, None], torch.zeros_like(a), a)
        a = a.reshape(-1, L, 2, M)
    x0 = None if state is None else as_planes(state).expand(*batch, 2, M).reshape(-1, 1, 2, M)
    x, _ = scan_planes(a, d, x0, False)
    return from_planes(x.reshape(*batch, L, 2, M))


def carries(Lambda_bar: Array, drive: Tensor, state: Tensor | None = None, *, scan: Any = None) -> tuple:
    """ptd.chunks.carries in one pass over both directions; in forward mode the definition itself."""
    if forward_mode():
        return chunks.carries(Lambda_bar, drive, state)
    *batch, n, D, _, M = drive.shape
    rows = math.prod(batch)
    x0 = None
    if state is not None:
        x0 = state.reshape(rows, 1, 2, M)
        if D == 2:
            x0 = torch.cat([x0, torch.zeros_like(x0)], dim=1)
    entering, final = scan_planes(as_planes(Lambda_bar), drive.reshape(rows, n, D, 2, M), x0, True)
    return entering.view(drive.shape), final.view(*batch, D, 2, M)


def exact_matmul(x: Tensor, y: Tensor) -> Tensor:
    """x @ y, by float64 where float32 products may be told to round their factors: on a GPU, and under autocast."""
    rounded = x.is_cuda or torch.is_autocast_enabled(x.device.type)
    return (x.double() @ y.double()).to(x.dtype) if rounded else x @ y


def cauchy(transition: LowRankTransition, Lambda: Array, P: Array, B: Array, C: Array, step: Tensor, L: int) -> Tensor:
    """ptd.convolution.cauchy; the library's FFT (MKL, torch 2.13) refuses an empty batch."""
    if not math.prod(B.shape):
        return step.new_zeros((*B.shape[:-1], L))
    return convolution.cauchy(transition, Lambda, P, B, C, step, L, sums=resolvent_sums)


def causal_convolution(u: Tensor, K: Tensor) -> Tensor:
    """ptd.convolution.causal_convolution; the library's FFT refuses an empty batch."""
    return convolution.causal_convolution(u, K) if u.numel() else u


def chunk_length_on_gpu(layer: Any, L: int) -> int:
    """T on a GPU: the power of two near the least of what T costs.

    Of a training step with D directions, the direct product takes 6 T H^2 operations a sample, at 250 T/s (TF32
    products of these shapes on an H200), and the states about 5 passes over 8 D P/T bytes, at 3.5 TB/s.
    """
    if len(layer.state_axes) == 2:
        return max(1, min(64, L))
    directions = 2 if layer.bidirectional else 1
    best = math.sqrt((5 * 8 * directions * layer.modes / 3.5) / (6 * layer.d_model**2 / 250))
    return max(1, min(2 ** round(math.log2(max(best, 1))), 8, L))


def chunk_length_beside_states(layer: Any, L: int) -> int:
    """T on a GPU where the states after each sample are to be had (Kernels.mixing_states): 1 if they cost less.

    With them there is no direct product, and all directions have one drive. Counted forward and backward, with the
    products that make and read states: 7 passes and 6/D, 13 otherwise.
    """
    T = chunk_length_on_gpu(layer, L)
    if len(layer.state_axes) == 2:
        return T
    directions, H, P = 2 if layer.bidirectional else 1, layer.d_model, layer.modes
    states = 8 * directions * P / 3.5
    chunks = 13 * states / T + (24 * directions * H * P + 6 * T * H**2) / 250
    samples = (7 + 6 / directions) * states + 12 * (directions + 1) * H * P / 250
    return 1 if samples < chunks else T


def chunk_length_on_cpu(layer: Any, L: int) -> int:
    """T on a CPU: for S5 with T H near 256, measured best of T = 1 to 16 at L = 1024 to 65536 and H = 64."""
    wanted = 64 if len(layer.state_axes) == 2 else min(16, 256 // layer.d_model)
    return max(1, min(wanted, L))


_CHUNKED = {"s5": "chunked", "s4d": "chunked", "dss": "chunked"}


_SHARED: dict[str, Any] = {
    "scan": scan,
    "carries": carries,
    "vandermonde": vandermonde,
    "cauchy": cauchy,
    "causal_convolution": causal_convolution,
    "orbits": orbits,
    "per_feature_chunks": per_feature_chunks,
    "activations": frozenset({"bfloat16", "float16"}),
}

#: Kernels by the type of device.
KERNELS = {
    "cpu": Kernels(
        **_SHARED,
        # In Triton's interpreter only: what it is given costs a layer on a CPU a twentieth of its matrices.
        diagonal_chunks=None if kernel_path(torch.device("cpu")) == "torch" else diagonal_chunks,
        fastest_form=by_size_on_cpu(_CHUNKED),
        chunk_length=chunk_length_on_cpu,
    ),
    "cuda": Kernels(
        **_SHARED,
        diagonal_chunks=diagonal_chunks,
        fastest_form=by_kind(_CHUNKED | {"s4": "chunked"}),
        chunk_length=chunk_length_on_gpu,
    ),
}
