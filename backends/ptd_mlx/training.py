"""Training a SequenceModel with mlx.optimizers: one compiled step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from ptd.arrays import Array
from ptd.contract import Backend
from ptd.model import SequenceModel, Training, is_statistic
from ptd.optimization import Group, Optimizer


class MlxLearner:
    """The contract's Learner; losses stay on the device until they are looked at."""

    def __init__(
        self,
        backend: Backend,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
    ):
        self._backend, self._seed, self._steps = backend, seed, 0
        self._leaves = {name: backend.asarray(value, "float32") for name, value in params.items()}
        self._groups = _groups(optimizer, list(self._leaves))
        for names, rule in self._groups:
            rule.init({name: self._leaves[name] for name in names})

        def loss(trained: dict, fixed: dict, inputs: Array, targets: Array, lengths: Any, key: Array) -> Any:
            training = Training(_dropout(key))
            y, updated = backend.apply_model(model, trained | fixed, inputs, lengths=lengths, training=training)
            return _loss(y, targets), updated

        def step(leaves: dict, states: list, key: Array, inputs: Array, targets: Array, lengths: Any) -> Any:
            trained = {name: leaves[name] for names, _ in self._groups for name in names}
            fixed = {name: value for name, value in leaves.items() if name not in trained}
            (value, updated), g = mx.value_and_grad(loss)(trained, fixed, inputs, targets, lengths, key)
            new = leaves | updated
            for (names, rule), state in zip(self._groups, states, strict=True):
                rule.state = state
                new |= rule.apply_gradients({name: g[name] for name in names}, {name: leaves[name] for name in names})
            return value, new, [rule.state for _, rule in self._groups]

        def outputs(leaves: dict, inputs: Array, lengths: Any, layer_noise: Any) -> Array:
            return backend.apply_model(model, leaves, inputs, lengths=lengths, layer_noise=layer_noise)

        self._step, self._outputs = step, outputs

    def step(self, inputs: Array, targets: Array, lengths: Array | None = None) -> Array:
        """One optimiser step; the loss before it, as a 0-d array."""
        key = mx.random.key(self._seed * 2**32 + self._steps)
        states = [rule.state for _, rule in self._groups]
        batch = (self._backend.asarray(value) for value in (inputs, targets))
        lengths = None if lengths is None else self._backend.asarray(lengths)
        value, self._leaves, states = self._step(self._leaves, states, key, *batch, lengths)
        for (_, rule), state in zip(self._groups, states, strict=True):
            rule.state = state
        mx.eval(value, self._leaves, states)
        self._steps += 1
        return value

    def outputs(
        self, inputs: Array, lengths: Array | None = None, layer_noise: list[Array] | None = None
    ) -> NDArray[np.float32]:
        """The model's outputs in evaluation mode."""
        lengths = None if lengths is None else self._backend.asarray(lengths)
        noise = None if layer_noise is None else [self._backend.asarray(value) for value in layer_noise]
        return np.array(self._outputs(self._leaves, self._backend.asarray(inputs), lengths, noise))

    def parameters(self) -> dict[str, NDArray]:
        """The current leaves, on the host."""
        return {name: np.array(value) for name, value in self._leaves.items()}


def _groups(optimizer: Optimizer, names: list[str]) -> list[tuple[list[str], optim.Optimizer]]:
    """The trained leaves of each group with the optimiser of that group."""
    groups: dict[Group, list[str]] = {}
    for name in names:
        group = optimizer.group(name)
        if group.lr > 0 and not is_statistic(name):
            groups.setdefault(group, []).append(name)
    return [(members, _rule(optimizer, group)) for group, members in groups.items()]


def _rule(optimizer: Optimizer, group: Group) -> optim.Optimizer:
    warm = optimizer.warmup_steps
    rate: Callable = optim.cosine_decay(group.lr, optimizer.total_steps - warm)
    if warm:
        rate = optim.join_schedules([optim.linear_schedule(0.0, group.lr, warm), rate], [warm])
    # mlx leaves Adam's bias correction out unless told otherwise.
    return optim.AdamW(rate, weight_decay=group.weight_decay, bias_correction=True)


def _loss(y: Array, targets: Array) -> Array:
    if mx.issubdtype(targets.dtype, mx.integer):
        return nn.losses.cross_entropy(y, targets, reduction="mean")
    return mx.mean((y - targets) ** 2)


def _dropout(key: Array) -> Any:
    keys = [key]

    def dropout(x: Array, rate: float, over_time: bool) -> Array:
        keys[0], own = mx.random.split(keys[0])
        shape = (*x.shape[:-2], 1, x.shape[-1]) if over_time else x.shape
        return mx.where(mx.random.bernoulli(1 - rate, shape, own), x / (1 - rate), 0.0)

    return dropout
