"""The numpy backend: core itself. In complex128 it is the reference every other backend is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from numpy.typing import NDArray

from . import checks
from .contract import Backend
from .layers import Layer
from .model import SequenceModel
from .portable import PortableBackend


class Module:
    """A layer or model with its parameters, as a callable."""

    def __init__(self, backend: ReferenceBackend, description: Layer | SequenceModel, params: dict[str, NDArray]):
        self.backend, self.description, self.params = backend, description, params

    def __call__(self, u: NDArray, **call: Any) -> Any:
        """The output on whole sequences; arguments as Layer.apply or SequenceModel.apply."""
        if isinstance(self.description, Layer):
            return self.backend.apply(self.description, self.params, u, **call)
        return self.backend.apply_model(self.description, self.params, u, **call)

    def step(self, u_k: NDArray, state: Any, **call: Any) -> Any:
        """One sample; arguments as Layer.step or SequenceModel.step."""
        return self.description.step(self.params, u_k, state, **call)

    def initial_state(self, batch: tuple[int, ...] = ()) -> Any:
        """A zero state of a layer; of a model, one per block."""
        dtype = next(iter(self.params.values())).dtype
        if isinstance(self.description, Layer):
            return np.zeros(self.description.state_shape(batch), dtype)
        return [np.zeros(shape, dtype) for shape in self.description.state_shapes(batch)]

    def leaves(self) -> dict[str, NDArray]:
        """The parameters by name."""
        return dict(self.params)


class ReferenceBackend(PortableBackend):
    """NumPy, float64 or float32."""

    name = "numpy"
    xp = xp
    distributions = ("numpy",)
    unsupported: Mapping[str, str] = {
        "gradients": "NumPy has no automatic differentiation",
        "training": "NumPy has no automatic differentiation",
        "compilation": "NumPy has no compiler",
    }

    def module(
        self, description: Layer | SequenceModel, params: Mapping[str, NDArray], dtype: str = "float32"
    ) -> Module:
        checks.choice("dtype", dtype, self.dtypes)
        description.check(params)
        return Module(self, description, {name: np.asarray(value, dtype) for name, value in params.items()})


backend: Backend = ReferenceBackend()
