"""What the modules of all backends do alike; a framework's own part is how a module owns its leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arrays import Array, zeros
from .layers import Layer
from .model import SequenceModel, Training


class ModuleMethods:
    """Running, stepping and exchanging leaves, as ptd.contract.Backend.module says, from the arrays a module owns.

    Attributes:
        backend: runs the pure functions.
        description: the layer or model.
    """

    backend: Any
    description: Layer | SequenceModel

    def arrays(self) -> dict[str, Array]:
        """The leaves by name, as the framework's arrays."""
        raise NotImplementedError

    def keep(self, statistics: dict[str, Array]) -> None:
        """Put updated batch-norm statistics in the place of the old."""
        raise NotImplementedError

    def run(self, u: Array, training: Training | None, /, **call: Any) -> Any:
        """The output on whole sequences, of a training pass unless training is None; call as the arguments of apply."""
        if isinstance(self.description, Layer):
            return self.backend.apply(self.description, self.arrays(), u, **call)
        if training is None or "training" in call:
            return self.backend.apply_model(self.description, self.arrays(), u, **call)
        y, statistics = self.backend.apply_model(self.description, self.arrays(), u, training=training, **call)
        self.keep(statistics)
        return y

    def step(self, u_k: Array, state: Any, **call: Any) -> Any:
        """One sample; arguments as Layer.step or SequenceModel.step."""
        if state is None:
            raise checks.fail("state", "the state before u_k", None, "begin with module.initial_state(batch)")
        if isinstance(self.description, Layer):
            return self.backend.step(self.description, self.arrays(), u_k, state, **call)
        return self.description.step(self.arrays(), u_k, state, **call)

    def initial_state(self, batch: tuple[int, ...] = ()) -> Any:
        """A zero state of a layer; of a model, one per block. batch is a tuple, the leading axes of the samples."""
        checks.batch_axes(batch)
        like = next(iter(self.arrays().values()))
        if isinstance(self.description, Layer):
            return zeros(self.description.state_shape(batch), like)
        return [zeros(shape, like) for shape in self.description.state_shapes(batch)]

    def leaves(self) -> dict[str, NDArray]:
        """The parameters by name, on the host."""
        return {name: np.array(self.backend.to_numpy(value)) for name, value in self.arrays().items()}
