"""Streams of operations: gradients that stay on theirs, and products over several cores of a CPU.

mlx runs the operations of one stream of a CPU one after the other on one core.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

Array = Any

#: Multiplications per core from which another core pays: about 0.3 ms with the reference BLAS of mlx on Linux.
WORTHWHILE = 1 << 20


def differentiable(forward: Callable, backward: Callable) -> Callable:
    """A function of arrays with a gradient of its own that runs on the stream of the forward pass.

    Args:
        forward: of arrays, to an array or a tuple of arrays.
        backward: of the arguments, the cotangents and the outputs, to the gradient of every argument.
    """

    def call(*arguments: Array) -> Any:
        stream = mx.default_stream(mx.default_device())
        function = mx.custom_function(forward)

        @function.vjp
        def gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
            with mx.stream(stream):
                return backward(primals, cotangents, outputs)

        return function(*arguments)

    return call


def _linear(x: Array, weight: Array) -> Array:
    transposed = mx.contiguous(weight.T)
    y = mx.concatenate(_by_rows(lambda part: part @ transposed, weight.size, _rows(x)), axis=0)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _linear_gradients(arguments: Any, cotangent: Any, output: Any) -> tuple[Array, Array]:
    x, weight = arguments
    rows, g = _rows(x), _rows(cotangent)
    by_x = mx.concatenate(_by_rows(lambda part: part @ weight, weight.size, g), axis=0)
    by_weight = _by_rows(lambda g, part: g.T @ part, weight.size, g, rows)
    return by_x.reshape(x.shape), sum(by_weight[1:], start=by_weight[0])


def _rows(x: Array) -> Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


#: x weight^T. No product traverses both operands across their layout: on Linux mlx has the reference BLAS, whose loops
#: over x W^T take 2.5 times as long as those over x W. Rows are shared out over the cores.
linear = differentiable(_linear, _linear_gradients)


def _by_rows(function: Callable, work: int, *arrays: Array) -> list[Array]:
    """function of the arrays cut along their first axis into one piece per core, each on a stream of its own."""
    rows = arrays[0].shape[0]
    pieces = 1 if mx.default_device() == mx.gpu else max(1, min(_cores(), rows * work // WORTHWHILE))
    if pieces == 1:
        return [function(*arrays)]
    results = []
    for i, stream in zip(range(pieces), _streams(), strict=False):
        with mx.stream(stream):
            results.append(function(*(array[rows * i // pieces : rows * (i + 1) // pieces] for array in arrays)))
    return results


@functools.cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _streams() -> list[Any]:
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(_cores())]
