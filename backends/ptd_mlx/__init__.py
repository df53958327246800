"""The mlx backend: real arithmetic throughout, mlx.nn modules, mlx.optimizers training, kernels for Apple's GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from numpy.typing import NDArray

from ptd import arrays, checks
from ptd.arrays import Array
from ptd.kernels import Kernels
from ptd.layers import Layer
from ptd.model import SequenceModel
from ptd.optimization import Optimizer
from ptd.portable import PortableBackend

from . import namespace
from .kernels import ON_CPU, ON_GPU

arrays.NAMESPACES[mx.array] = namespace

#: What arrays have to be here: see ptd.checks.array.
ARRAY = mx.array, "an mlx array"


class MlxBackend(PortableBackend):
    """mlx on its default device, in float32."""

    name = "mlx"
    xp = namespace
    distributions = ("mlx",)
    #: On a CPU mlx computes the exponentials and sines of float64 in float32, and a GPU has no float64.
    dtypes: tuple[str, ...] = ("float32",)

    @property
    def kernels(self) -> Kernels:  # type: ignore[override]
        """Those of mlx's default device, which a program may change."""
        return ON_GPU if mx.default_device() == mx.gpu else ON_CPU

    def device(self) -> str:
        device = mx.default_device()
        return str(mx.device_info(device).get("device_name", "cpu")) if device == mx.gpu else "cpu"

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        if dtype is not None:
            checks.choice("dtype", dtype, self.dtypes)
        array = namespace.asarray(host)
        return array if dtype is None else array.astype(mx.float32)

    def apply(self, layer: Layer, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
        checks.array("u", u, *ARRAY)
        return super().apply(layer, params, u, **call)

    def apply_model(self, model: SequenceModel, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
        checks.array("u", u, *ARRAY)
        return super().apply_model(model, params, u, **call)

    def step(self, layer: Layer, params: Mapping[str, Array], u_k: Array, state: Array, **call: Any) -> Any:
        checks.array("u_k", u_k, *ARRAY)
        return super().step(layer, params, u_k, state, **call)

    def gradients(self, function: Callable[..., Array], arguments: dict[str, Array]) -> dict[str, Array]:
        return mx.grad(lambda arguments: function(**arguments))(arguments)

    def compiled(self, function: Callable) -> Callable:
        return mx.compile(function)

    def module(self, description: Layer | SequenceModel, params: Mapping[str, NDArray], dtype: str = "float32") -> Any:
        from .modules import Module

        description.check(params)
        return Module(self, description, {name: self.asarray(value, dtype) for name, value in params.items()})

    def parameter_groups(self, module: Any, optimizer: Optimizer) -> Any:
        from .training import parameter_groups

        return parameter_groups(optimizer)

    def learner(
        self,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
        *,
        activations: str | None = None,
        devices: int = 1,
    ) -> Any:
        from .training import MlxLearner

        checks.one_device(self.name, devices)
        self.check_learner(model, params, activations)
        return MlxLearner(self, model, params, optimizer, seed)


backend = MlxBackend()
