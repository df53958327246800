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
from .module import ModuleMethods
from .portable import PortableBackend


class Module(ModuleMethods):
    """A layer or model with its parameters, as a callable."""

    def __init__(self, backend: ReferenceBackend, description: Layer | SequenceModel, params: dict[str, NDArray]):
        self.backend, self.description, self.params = backend, description, params

    def __call__(self, u: NDArray, **call: Any) -> Any:
        """The output on whole sequences; arguments as Layer.apply or SequenceModel.apply."""
        return self.run(u, None, **call)

    def train(self) -> None:
        """Raise Unsupported: it is always in evaluation mode."""
        raise self.backend._lacks("training")

    def eval(self) -> None:
        """Stay in evaluation mode."""

    def arrays(self) -> dict[str, NDArray]:
        """The leaves by name."""
        return self.params


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
        return Module(self, description, {name: np.array(value, dtype) for name, value in params.items()})


backend: Backend = ReferenceBackend()
