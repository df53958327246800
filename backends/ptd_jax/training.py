"""Training a SequenceModel with optax: one compiled step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from ptd.arrays import Array
from ptd.contract import Backend
from ptd.model import SequenceModel, Training, is_statistic
from ptd.optimization import Group, Optimizer


class JaxLearner:
    """The contract's Learner; loss and outputs stay on the device until they are looked at."""

    def __init__(
        self,
        backend: Backend,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
    ):
        self._leaves = {name: backend.asarray(value, "float32") for name, value in params.items()}
        transform = _transform(optimizer, list(self._leaves))
        self._optimizer_state = transform.init(_trained(self._leaves))
        self._key = jax.random.key(seed)

        def loss(trained: dict, statistics: dict, inputs: Array, targets: Array, lengths: Any, key: Array) -> Any:
            training = Training(_dropout(key))
            y, updated = backend.apply_model(model, trained | statistics, inputs, lengths=lengths, training=training)
            return _loss(y, targets), updated

        @jax.jit
        def step(leaves: dict, state: Any, key: Array, inputs: Array, targets: Array, lengths: Any) -> Any:
            statistics = {name: value for name, value in leaves.items() if is_statistic(name)}
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, updated), g = gradient(_trained(leaves), statistics, inputs, targets, lengths, key)
            changes, state = transform.update(g, state, _trained(leaves))
            return value, optax.apply_updates(_trained(leaves), changes) | statistics | updated, state

        def outputs(leaves: dict, inputs: Array, lengths: Any, layer_noise: Any) -> Array:
            return backend.apply_model(model, leaves, inputs, lengths=lengths, layer_noise=layer_noise)

        self._step, self._outputs = step, jax.jit(outputs)

    def step(self, inputs: Array, targets: Array, lengths: Array | None = None) -> Array:
        """One optimiser step; the loss before it, as a 0-d array."""
        self._key, key = jax.random.split(self._key)
        value, self._leaves, self._optimizer_state = self._step(
            self._leaves, self._optimizer_state, key, inputs, targets, lengths
        )
        return value

    def outputs(
        self, inputs: Array, lengths: Array | None = None, layer_noise: list[Array] | None = None
    ) -> NDArray[np.float32]:
        """The model's outputs in evaluation mode."""
        return np.asarray(self._outputs(self._leaves, inputs, lengths, layer_noise))

    def parameters(self) -> dict[str, NDArray]:
        """The current leaves, on the host."""
        return {name: np.asarray(value) for name, value in self._leaves.items()}


def _trained(leaves: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in leaves.items() if not is_statistic(name)}


def _transform(optimizer: Optimizer, names: list[str]) -> optax.GradientTransformation:
    def rule(group: Group) -> optax.GradientTransformation:
        if group.lr == 0:
            return optax.set_to_zero()
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if optimizer.warmup_steps else group.lr,
            group.lr,
            optimizer.warmup_steps,
            optimizer.total_steps,
        )
        return optax.adamw(schedule, weight_decay=group.weight_decay)

    groups = {name: optimizer.group(name) for name in names if not is_statistic(name)}
    labels = {name: repr(group) for name, group in groups.items()}
    return optax.multi_transform({repr(group): rule(group) for group in groups.values()}, labels)


def _loss(y: Array, targets: Array) -> Array:
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, targets))
    return jnp.mean((y - targets) ** 2)


def _dropout(key: Array) -> Any:
    calls = itertools.count()

    def dropout(x: Array, rate: float, over_time: bool) -> Array:
        shape = (*x.shape[:-2], 1, x.shape[-1]) if over_time else x.shape
        keep = jax.random.bernoulli(jax.random.fold_in(key, next(calls)), 1 - rate, shape)
        return jnp.where(keep, x / (1 - rate), 0.0)

    return dropout
