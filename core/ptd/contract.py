"""The contract between ptd and a backend: what a backend offers, and all that ptd asks of it.

The short way to a backend is to derive from ptd.portable.PortableBackend, which fills in everything from an array
namespace, and to replace what the framework does better: single kernels through the Kernels table, or a whole layer
by overriding apply (a fused kernel that never writes the states, say).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import Array
from .kernels import Kernels
from .layers import Layer
from .model import SequenceModel
from .optimization import Optimizer

#: What a backend may lack. Conformance clauses name the feature they need.
FEATURES = {
    "gradients": "gradients of real leaves, input and initial state",
    "modules": "framework modules that own their parameters",
    "training": "a training step",
    "compilation": "the same results under the framework's compiler",
}


class Unsupported(NotImplementedError):
    """Raised by a backend for a feature it declares unsupported."""


class Learner(Protocol):
    """A model in training. Holds parameters and optimiser state; batches are host or framework arrays."""

    def step(self, inputs: Array, targets: Array, lengths: Array | None = None) -> Any:
        """One optimiser step; the mean loss before it: cross entropy for integer targets, else squared error.

        Returns:
            A number, or a framework's array of one, which float waits for.

        Raises:
            ValueError: shapes, or values of tokens, classes or lengths on a CPU, do not fit; nothing is trained on.
        """

    def outputs(
        self, inputs: Array, lengths: Array | None = None, layer_noise: list[Array] | None = None
    ) -> NDArray[np.float32]:
        """The model's outputs in evaluation mode, as SequenceModel.apply; values are looked at as in step."""

    def parameters(self) -> dict[str, NDArray]:
        """The current leaves, on the host."""

    def place(self, inputs: NDArray, targets: NDArray, lengths: NDArray | None = None) -> Any:
        """A whole data set where train and evaluate read it: on the device, as compact as it was stored.

        Args:
            inputs: host array (N, ...), memory-mapped or not, of uint8, uint16, int32 or float32: real samples,
                integers for the model's Input, or tokens; (N, 2, ...) where the model compares pairs.
            targets: (N,) class numbers, or real targets.
            lengths: integers (N,) or (N, 2), valid lengths.

        Returns:
            Whatever the learner's train and evaluate take.
        """

    def train(self, placed: Any, order: NDArray[np.integer]) -> NDArray[np.float32]:
        """One optimiser step per row of order, without a round trip to the host between steps.

        What it does is a function of the learner's state and of the rows, not of how they are split over calls:
        train(a) then train(b) ends bit for bit where train(a above b) does. Dropout of a step is drawn from
        (seed, number of steps done).

        Args:
            placed: of place.
            order: (steps, batch) row numbers of the data set, steps >= 0.

        Returns:
            (steps,) the mean loss of each batch before its step.
        """

    def evaluate(self, placed: Any, indices: NDArray[np.integer], batch: int) -> NDArray[np.float32]:
        """The model's outputs (n, d_output) in evaluation mode on rows indices (n,), batch rows at a time."""

    def snapshot(self) -> dict[str, NDArray]:
        """Everything that decides the future, on the host, under flat names: leaves, optimiser state, step count.

        The leaves are named "leaves.NAME", all else as the backend likes. The seed is not part of it.
        """

    def restore(self, snapshot: Mapping[str, NDArray]) -> None:
        """Become the learner that gave snapshot: training goes on bit for bit as it would have.

        Raises:
            ValueError: snapshot is not one of this model, optimiser and backend.
        """


class Backend(Protocol):
    """An object that runs ptd's layers in one framework. It is passed around; several can be held at once."""

    #: The name users ask for.
    name: str
    #: Real dtypes it computes in; complex arithmetic is of the same precision.
    dtypes: tuple[str, ...]
    #: Features it lacks, each with the reason the support table prints.
    unsupported: Mapping[str, str]
    #: Clauses it is known to fail, by clause id or "id-subject", each with the reason; a pass there fails the suite.
    known_failures: Mapping[str, str]
    #: Parts of it that no run on any device has measured, each with what stands in for that; the report says so.
    not_run: Mapping[str, str]

    @property
    def kernels(self) -> Kernels:
        """Its kernels: ptd's definitions, or faster forms."""

    def versions(self) -> dict[str, str]:
        """Versions of the packages that decide its numerics."""

    def device(self) -> str:
        """The device it computes on, in words."""

    def precision(self, dtype: str) -> AbstractContextManager:
        """A context in which arrays of dtype keep their precision; for most frameworks it does nothing."""

    def fast_products(self) -> AbstractContextManager:
        """A context in which matrix products may round their factors to fewer bits where the device is faster for it.

        On NVIDIA GPUs TF32, as the published models were trained. It does nothing where there is no such choice.
        """

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        """A framework array on its device; dtype is one of dtypes, or None to keep integers and flags."""

    def to_numpy(self, array: Array) -> NDArray:
        """A host copy."""

    def apply(self, layer: Layer, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
        """Layer.apply on framework arrays: same arguments, results and errors, whatever runs inside."""

    def form(self, layer: Layer, shape: tuple[int, ...], **call: Any) -> str:
        """The form in which apply runs a call on u (..., L, H) of that shape, where no compiler traces it."""

    def step(self, layer: Layer, params: Mapping[str, Array], u_k: Array, state: Array, **call: Any) -> Any:
        """Layer.step on framework arrays."""

    def apply_model(self, model: SequenceModel, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
        """SequenceModel.apply on framework arrays."""

    def gradients(self, function: Callable[..., Array], arguments: dict[str, Array]) -> dict[str, Array]:
        """The gradient of a real scalar function(**arguments) with respect to each of its real arguments."""

    def compiled(self, function: Callable) -> Callable:
        """function under the framework's compiler."""

    def module(self, description: Layer | SequenceModel, params: Mapping[str, NDArray], dtype: str = "float32") -> Any:
        """The framework's module that owns params as real leaves.

        Called as module(u, **call) with the arguments of apply; has step(u_k, state), initial_state(batch) (a model's
        is a list, one per block) and leaves() -> dict[str, np.ndarray].

        It starts in the mode its framework's modules start in, training in torch, mlx and flax nnx, and changes it by
        their train() and eval(). A model in training mode drops out, norms by its batches and keeps their moments as
        its statistics, which no optimiser moves; in evaluation mode, and where it is stepped, it does none of it. A
        layer does the same in both. Masks come from the framework's generator: torch's, mx.random, or for nnx
        module(..., rngs=nnx.Rngs(0)) or the call's rngs.
        """

    def parameter_groups(self, module: Any, optimizer: Optimizer) -> Any:
        """What trains each leaf of a module as optimizer says of its name, in a loop of the user's own.

        In torch the groups that torch.optim takes, at peak rates: the schedule is the loop's, by
        torch.optim.lr_scheduler.LambdaLR(adamw, optimizer.schedule). AdamW with the schedule in jax, an
        optax.GradientTransformation, and in mlx, an mlx.optimizers.MultiOptimizer. Frozen leaves stay.

        Args:
            module: one of `module`, or a framework's own that contains some; leaves of other names train at lr. Optax
                and mlx look at it when they are initialised with its parameters, torch here.
            optimizer: rates, decays and the rule.
        """

    def learner(
        self,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
        *,
        activations: str | None = None,
        devices: int = 1,
    ) -> Learner:
        """A model ready to train, starting from params; seed drives dropout.

        Args:
            model: the description.
            params: its leaves, on the host.
            optimizer: the groups and their schedule.
            seed: of dropout.
            activations: a narrower dtype for all between encoder and pooling, one of kernels.activations.
            devices: how many share the rows of every batch; results are those of one up to rounding, and a snapshot
                serves any number.

        Raises:
            ValueError: params do not fit, there are no such activations, or it cannot train on so many devices.
        """
