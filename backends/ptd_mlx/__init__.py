"""The mlx backend: real arithmetic throughout, mlx.nn modules, mlx.optimizers training; GPU kernels on Apple silicon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ptd import arrays
from ptd.arrays import Array
from ptd.portable import PortableBackend

from . import namespace

arrays.NAMESPACES["mlx.core"] = namespace


class MlxBackend(PortableBackend):
    """mlx on its default device, in float32."""

    name = "mlx"
    xp = namespace
    distributions = ("mlx",)
    #: On a CPU mlx computes the exponentials and sines of float64 in float32, and a GPU has no float64.
    dtypes = ("float32",)

    def gradients(self, function: Callable[..., Array], arguments: dict[str, Array]) -> dict[str, Array]:
        return mx.grad(lambda arguments: function(**arguments))(arguments)

    def compiled(self, function: Callable) -> Callable:
        return mx.compile(function)


backend = MlxBackend()
