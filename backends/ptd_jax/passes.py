"""Parts of a training block with gradients of their own, so that XLA reads and writes activations fewer times.

Differentiated as they stand in core, norm, gelu and gate leave XLA to choose what to keep: it kept the tanh of gelu
beside its argument, wrote the gradient of a gate before it was multiplied by 1/2, and divided every number by the
deviation of its feature. Here what is kept are the arguments, and coefficients are computed once per feature. They
have first derivatives in reverse mode only, which is what a learner takes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ptd import sequences
from ptd.arrays import Array
from ptd.model import NORM_EPSILON, SequenceModel, Training, moments, sigmoid
from ptd.model import gelu as gelu_of

from . import placement
from .dropout import call_key, dropout, dropped

#: The parts below that blocks take. Passes over an activation in a step, by XLA's programs for an H200 (jax 0.11), with
#: core's own, with all, and with all but gated_sum: ListOps 393, 373, 378; Path-X 385, 378, 373; but Pathfinder 361,
#: 377, 371, which takes 8.45 ms with all and 8.67 with core's own.
PARTS = ("batch_norm", "own_gelu", "gated_sum")


def training_block(
    model: SequenceModel, i: int, leaves: Mapping[str, Array], x: Array, *, key: Array, batch: int, **call: Any
) -> tuple[Array, dict[str, Array]]:
    """SequenceModel.block of a training pass by the functions below, its dropout drawn from the pass's key and i.

    batch: rows on all devices.
    """
    own = call_key(key, i)

    def end(keep: Array | None, z: Array, bias: Array, x: Array) -> Array:
        if keep is None:
            (keep, z), (of_keep, bias) = jnp.split(z, 2, -1), jnp.split(bias, 2)
            keep = keep + of_keep.astype(keep.dtype)
        return gated_sum(keep, z, bias, x, call_key(own, 0), model.dropout, model.tie_dropout)

    parts = {"batch_norm": _batch_norm_of(batch), "own_gelu": gelu, "gated_sum": end}
    call |= {"training": Training(dropout(own))} | {name: parts[name] for name in PARTS}
    return model.block(i, leaves, x, **call)


def training_decoder(
    model: SequenceModel, leaves: Mapping[str, Array], x: Array, *, batch: int, **call: Any
) -> tuple[Array, dict[str, Array]]:
    """SequenceModel.decode of a training pass; batch as in training_block."""
    return model.decode(leaves, x, **call, batch_norm=_batch_norm_of(batch))


def _batch_norm_of(batch: int) -> Callable[..., tuple[Array, Array, Array]]:
    """batch_norm of rows of which so many count."""

    def norm(x: Array, lengths: Array | None, *rest: Any) -> tuple[Array, Array, Array]:
        return batch_norm(x, _counted(x, lengths, batch), *rest)

    return norm


@jax.custom_vjp
def gelu(y: Array) -> Array:
    """ptd.model.gelu, whose gradient keeps y alone."""
    return gelu_of(y)


def _gelu_forward(y: Array) -> tuple[Array, Array]:
    return gelu_of(y), y


def _gelu_backward(y: Array, g: Array) -> tuple[Array]:
    """With t = tanh(c (y + a y^3)): 0.5 (1 + t) + 0.5 y (1 - t^2) c (1 + 3 a y^2)."""
    c, a = math.sqrt(2.0 / math.pi), 0.044715
    (y,) = _anew(y)
    t = jnp.tanh(c * (y + a * y * y * y))
    return (g * (0.5 * (1.0 + t) + (0.5 * c) * y * (1.0 - t * t) * (1.0 + (3.0 * a) * y * y)),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def gated_sum(keep: Array, z: Array, bias: Array, x: Array, key: Array, rate: float, over_time: bool) -> Array:
    """x + drop(keep sigmoid(z + bias)) with the dropout of a key."""
    return x + _drop(keep * sigmoid(z + bias.astype(z.dtype)), key, rate, over_time)


def _gated_sum_forward(
    keep: Array, z: Array, bias: Array, x: Array, key: Array, rate: float, over_time: bool
) -> tuple[Array, tuple]:
    return gated_sum(keep, z, bias, x, key, rate, over_time), (keep, z, bias, key)


def _gated_sum_backward(rate: float, over_time: bool, kept: tuple, g: Array) -> tuple:
    keep, z, bias, key = kept
    d, wide = _drop(g, key, rate, over_time), bias.astype(z.dtype)
    s = sigmoid(_anew(z, g)[0] + wide)
    dz = d * keep * s * (1.0 - s)
    # The sigmoid again, for the pass that follows: what two passes read, XLA would write.
    s = sigmoid(_anew(z, dz)[0] + wide)
    return d * s, dz, jnp.sum(dz.astype(bias.dtype), axis=tuple(range(z.ndim - 1))), g, None


gated_sum.defvjp(_gated_sum_forward, _gated_sum_backward)


def _drop(x: Array, key: Array, rate: float, over_time: bool) -> Array:
    return dropped(x, key, rate, over_time) if rate else x


def batch_norm(
    x: Array, lengths: Array | None, scale: Array, bias: Array, near: Array | None = None, epsilon: float = NORM_EPSILON
) -> tuple[Array, Array, Array]:
    """ptd.model.batch_norm; mean and variance come without a gradient of their own."""
    mean, var = lax.stop_gradient(moments(x.astype(scale.dtype), lengths, near, placement.total))
    valid = None if lengths is None else sequences.valid(lengths, x.shape[-2])[..., None]
    return _normalized(x, scale, bias, mean, var, valid, epsilon), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _normalized(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, valid: Array | None, epsilon: float
) -> Array:
    factor = _once(scale * lax.rsqrt(var + epsilon))
    return ((x.astype(scale.dtype) - mean) * factor + bias).astype(x.dtype)


def _normalized_forward(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, valid: Array | None, epsilon: float
) -> tuple:
    return _normalized(x, scale, bias, mean, var, valid, epsilon), (x, scale, mean, var, valid)


def _normalized_backward(epsilon: float, kept: tuple, g: Array) -> tuple:
    """With d = x - mean, r = (var + epsilon)^(-1/2), n valid samples, and mean and var functions of x:

    dx = scale r (g - sum g / n - d r^2 sum(g d) / n), the sums over all samples, what they add on valid ones only.
    """
    x, scale, mean, var, valid = kept
    r, axes = lax.rsqrt(var + epsilon), tuple(range(x.ndim - 1))
    wide, d = g.astype(scale.dtype), x.astype(scale.dtype) - mean
    n = math.prod(x.shape[:-1]) if valid is None else jnp.sum(valid, dtype=scale.dtype)
    own = jnp.sum(wide, axis=axes), jnp.sum(wide * d, axis=axes)
    total, along, n = placement.total((*own, n))
    n = jnp.maximum(n, 1)  # as ptd.model.moments has it
    factor = scale * r
    shift = _once(factor * total / n)
    slope = _once(jnp.where(var > 0.0, factor * r * r * along / n, 0.0))
    from_moments = shift + d * slope
    dx = wide * _once(factor) - (from_moments if valid is None else jnp.where(valid, from_moments, 0.0))
    nothing = jnp.zeros_like(mean)
    # What own rows give: of leaves the learner adds it up.
    return dx.astype(x.dtype), own[1] * r, own[0], nothing, nothing, None


_normalized.defvjp(_normalized_forward, _normalized_backward)


def _counted(x: Array, lengths: Array | None, batch: int) -> Array | None:
    """Lengths with which rows that are not of the batch have no valid sample."""
    shape = x.shape[:-2]
    whole = jnp.full(shape, x.shape[-2]) if lengths is None else lengths
    own = placement.counts(whole, batch)
    return lengths if own is None else jnp.where(own, whole, 0)


def _anew(*arrays: Array) -> tuple[Array, ...]:
    """Arrays that to XLA are others, known when all are: what the forward pass made of one is made again, not kept."""
    return lax.optimization_barrier(arrays)


def _once(x: Array) -> Array:
    """x, computed before the pass that reads it rather than by each of its numbers."""
    return lax.optimization_barrier(x)
