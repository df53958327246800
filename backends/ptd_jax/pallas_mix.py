"""What follows the layer in a block of SequenceModel as one GPU kernel, by Pallas through Triton.

Gated activation, dropout and residual sum of a tile of samples: read y and x, write the sum. Unfused it is three
kernels that pass eight times over the activations, and twice that with the gradient. The gradient finds activations
and masks again from y, so nothing but y is kept.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ptd.arrays import Array
from ptd.model import SequenceModel, gelu, sigmoid

from .dropout import call_key, dropped

#: Features of one product: what the shared memory of a processor holds of a gate's weights.
PIECES = (128, 64)
#: Widths from here up keep too much of a tile in registers.
WIDEST = 256


@dataclass(frozen=True)
class Mix:
    """One kind of mix.

    Attributes:
        keeps_y: y sigmoid(W g), with g = dropout(gelu(y)), in place of g sigmoid(W g).
        rate: of the dropout.
        tile: samples per program.
        warps: of 32 threads, per program.
        interpret: run the kernel's meaning on any device.
    """

    keeps_y: bool
    rate: float
    tile: int = 64
    warps: int = 8
    interpret: bool = False

    def head(self, y: Array, key: Array, position: Array) -> tuple[Array, Array]:
        """What enters the gate's product and what the gate acts on."""
        g = self._drop(gelu(y), call_key(key, 1), position)
        return g, y if self.keeps_y else g

    def tail(self, kept: Array, w: Array, key: Array, position: Array) -> Array:
        """The gated activation, from the gate's product."""
        return self._drop(kept * sigmoid(w), call_key(key, 2), position)

    def _drop(self, x: Array, key: Array, position: Array) -> Array:
        return dropped(x, key, position, self.rate) if self.rate else x


def supports(model: SequenceModel) -> bool:
    """Whether there is a kernel for a model's mix."""
    H = model.layer.d_model
    return (
        model.activation in ("half_glu1", "half_glu2")
        and model.residual
        and not (model.dropout and model.tie_dropout)
        and H <= WIDEST
        and H % PIECES[-1] == 0
    )


def mix(model: SequenceModel, leaves: Any, x: Array, y: Array, key: Array | None, interpret: bool = False) -> Array:
    """SequenceModel.mix; key, uint32, is that of ptd_jax.dropout, or None to evaluate."""
    kind = Mix(model.activation == "half_glu2", 0.0 if key is None else model.dropout, interpret=interpret)
    H = x.shape[-1]
    flat = [v.reshape(-1, H) for v in (x, y)]
    rows = flat[0].shape[0]
    flat = [jnp.pad(v, ((0, -rows % kind.tile), (0, 0))) for v in flat]
    seed = jnp.zeros(1, jnp.uint32) if key is None else key.reshape(1)
    out = _mix(kind, *flat, leaves["gate.weight"], leaves["gate.bias"], seed)
    return out[:rows].reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(kind: Mix, x: Array, y: Array, weight: Array, bias: Array, seed: Array) -> Array:
    return _launch(_forward, kind, [jax.ShapeDtypeStruct(x.shape, x.dtype)], x, y, weight.astype(x.dtype), bias, seed)[
        0
    ]


def _keep(kind: Mix, x: Array, y: Array, weight: Array, bias: Array, seed: Array) -> tuple[Array, tuple]:
    return _mix(kind, x, y, weight, bias, seed), (y, weight, bias, seed)


def _pull(kind: Mix, kept: tuple, grad: Array) -> tuple:
    y, weight, bias, seed = kept
    like = jax.ShapeDtypeStruct(y.shape, y.dtype)
    sums = jax.ShapeDtypeStruct((y.shape[0] // kind.tile, y.shape[1]), jnp.float32)
    narrow = weight.astype(y.dtype)
    grad_y, g, grad_w, sums = _launch(_backward, kind, [like, like, like, sums], grad, y, narrow, bias, seed)
    grad_weight = jnp.matmul(grad_w.T, g, preferred_element_type=jnp.float32)
    return grad, grad_y, grad_weight.astype(weight.dtype), jnp.sum(sums, 0).astype(bias.dtype), None


_mix.defvjp(_keep, _pull)


def _launch(kernel: Any, kind: Mix, shapes: list, *arrays: Array) -> list[Array]:
    rows, H = arrays[0].shape
    if rows == 0:
        return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    piece = next(size for size in PIECES if H % size == 0)
    options = {} if kind.interpret else {"compiler_params": _compiler(kind.warps)}
    return pl.pallas_call(
        functools.partial(kernel, kind=kind, piece=piece),
        shapes,
        grid=(rows // kind.tile,),
        interpret=kind.interpret,
        name="ptd_mix",
        **options,
    )(*arrays)


def _compiler(warps: int) -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=warps, num_stages=1)


class _Tile:
    """The samples of this program, in pieces of features."""

    def __init__(self, y: Any, kind: Mix, piece: int):
        self.H = y.shape[1]
        first = pl.program_id(0) * kind.tile
        self.rows = pl.ds(first, kind.tile)
        self.pieces = [pl.ds(start, piece) for start in range(0, self.H, piece)]
        row = first.astype(jnp.uint32) + jax.lax.broadcasted_iota(jnp.uint32, (kind.tile, piece), 0)
        column = jax.lax.broadcasted_iota(jnp.uint32, (kind.tile, piece), 1)
        self._position = row * jnp.uint32(self.H) + column
        self.piece = piece

    def position(self, j: int) -> Array:
        return self._position + jnp.uint32(j * self.piece)

    def of(self, ref: Any, j: int) -> Array:
        return ref[self.rows, self.pieces[j]].astype(jnp.float32)


def _gate(tile: _Tile, g: list[Array], weight: Any, bias: Any, j: int) -> Array:
    """Piece j of W g + b."""
    w = jnp.zeros_like(g[0]) + bias[tile.pieces[j]].astype(jnp.float32)[None]
    for k, part in enumerate(g):
        w = w + jnp.dot(
            part.astype(weight.dtype), weight[tile.pieces[j], tile.pieces[k]].T, preferred_element_type=jnp.float32
        )
    return w


def _forward(x: Any, y: Any, weight: Any, bias: Any, seed: Any, out: Any, *, kind: Mix, piece: int) -> None:
    tile, key = _Tile(y, kind, piece), seed[0]
    count = range(len(tile.pieces))
    heads = [kind.head(tile.of(y, j), key, tile.position(j)) for j in count]
    for j in count:
        w = _gate(tile, [g for g, _ in heads], weight, bias, j)
        z = tile.of(x, j) + kind.tail(heads[j][1], w, key, tile.position(j))
        out[tile.rows, tile.pieces[j]] = z.astype(out.dtype)


def _backward(
    grad: Any, y: Any, weight: Any, bias: Any, seed: Any,
    grad_y: Any, g_out: Any, grad_w: Any, sums: Any, *, kind: Mix, piece: int,
) -> None:  # fmt: skip
    tile, key = _Tile(y, kind, piece), seed[0]
    count = range(len(tile.pieces))
    heads = [kind.head(tile.of(y, j), key, tile.position(j)) for j in count]
    grad_g: list[Array] = [jnp.zeros_like(g) for g, _ in heads]
    grad_kept = []
    for j in count:
        w = _gate(tile, [g for g, _ in heads], weight, bias, j)
        at = tile.position(j)
        _, pull = jax.vjp(lambda kept, w, at=at: kind.tail(kept, w, key, at), heads[j][1], w)
        d_kept, d_w = pull(tile.of(grad, j))
        grad_kept.append(d_kept)
        narrow = d_w.astype(grad_w.dtype)
        grad_w[tile.rows, tile.pieces[j]] = narrow
        g_out[tile.rows, tile.pieces[j]] = heads[j][0].astype(g_out.dtype)
        sums[pl.program_id(0), tile.pieces[j]] = jnp.sum(d_w, 0)
        for k in count:
            part = jnp.dot(narrow, weight[tile.pieces[j], tile.pieces[k]], preferred_element_type=jnp.float32)
            grad_g[k] = grad_g[k] + part
    for j in count:
        at = tile.position(j)
        _, pull = jax.vjp(lambda y, at=at: kind.head(y, key, at), tile.of(y, j))
        grad_y[tile.rows, tile.pieces[j]] = pull((grad_g[j], grad_kept[j]))[0].astype(grad_y.dtype)
