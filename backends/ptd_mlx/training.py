"""Training a SequenceModel with mlx.optimizers.

The step is not compiled as a whole: on a CPU mlx calls a C++ compiler for every new element-wise kernel, half a minute
for a model of one layer, and most of a step is products and transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from ptd import checks
from ptd.arrays import Array
from ptd.contract import Backend
from ptd.model import SequenceModel, Training, is_statistic
from ptd.optimization import Group, Optimizer
from ptd.whole_sets import Placed, as_set, batches, check_targets, checked_rows

from .dropout import dropped


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
        self._model, self._seed = model, seed
        leaves = {name: backend.asarray(value, "float32") for name, value in params.items()}
        groups = _groups(optimizer, list(leaves))
        for names, rule in groups:
            rule.init({name: leaves[name] for name in names})
        self._state: dict[str, Any] = {"leaves": leaves, "optimizer": [rule.state for _, rule in groups]}
        self._steps = 0

        def loss(trained: dict, fixed: dict, batch: Placed, key: Array) -> Any:
            training = Training(_dropout(key))
            y, updated = backend.apply_model(
                model, trained | fixed, batch.inputs, lengths=batch.lengths, training=training
            )
            return _loss(y, batch.targets), updated

        def step(state: dict[str, Any], key: Array, *batch: Array) -> tuple[dict[str, Any], Array]:
            leaves = state["leaves"]
            trained = {name: leaves[name] for names, _ in groups for name in names}
            fixed = {name: value for name, value in leaves.items() if name not in trained}
            (value, updated), g = mx.value_and_grad(loss)(trained, fixed, _placed(batch), key)
            leaves = leaves | updated
            for (names, rule), own in zip(groups, state["optimizer"], strict=True):
                rule.state = own
                leaves |= rule.apply_gradients({n: g[n] for n in names}, {n: trained[n] for n in names})
            return {"leaves": leaves, "optimizer": [rule.state for _, rule in groups]}, value

        def outputs(leaves: dict, batch: Placed, layer_noise: Any = None) -> Array:
            return backend.apply_model(model, leaves, batch.inputs, lengths=batch.lengths, layer_noise=layer_noise)

        self._step, self._outputs = step, outputs

    def step(self, inputs: Array, targets: Array, lengths: Array | None = None) -> Array:
        """One optimiser step; the loss before it, as a 0-d array."""
        return self._advance(self.place(inputs, targets, lengths))

    def outputs(
        self, inputs: Array, lengths: Array | None = None, layer_noise: list[Array] | None = None
    ) -> NDArray[np.float32]:
        """The model's outputs in evaluation mode."""
        self._model.check_samples(inputs, lengths=lengths)
        noise = None if layer_noise is None else [_array(value) for value in layer_noise]
        batch = Placed(_array(inputs), mx.array(0), None if lengths is None else _array(lengths))
        return np.array(self._outputs(self._state["leaves"], batch, noise))

    def parameters(self) -> dict[str, NDArray]:
        """The current leaves, on the host."""
        return {name: np.array(value) for name, value in self._state["leaves"].items()}

    def place(self, inputs: NDArray, targets: NDArray, lengths: NDArray | None = None) -> Placed:
        host = as_set(self._model, inputs, targets, lengths)
        return Placed(*(None if part is None else _array(part) for part in host))

    def train(self, placed: Placed, order: NDArray[np.integer]) -> NDArray[np.float32]:
        losses = [self._advance(placed.rows(mx.array(index))) for index in checked_rows("order", order, placed)]
        return np.array([float(loss) for loss in losses], np.float32)

    def evaluate(self, placed: Placed, indices: NDArray[np.integer], batch: int) -> NDArray[np.float32]:
        pieces = batches(checked_rows("indices", indices, placed), batch)
        rows = (placed.rows(mx.array(index)) for index in pieces)
        parts = [np.array(self._outputs(self._state["leaves"], part)) for part in rows]
        return np.concatenate(parts)[: len(indices)]

    def snapshot(self) -> dict[str, NDArray]:
        return {name: np.array(value) for name, value in self._named().items()}

    def restore(self, snapshot: Mapping[str, NDArray]) -> None:
        expected = self._named()
        checks.shapes("this learner", snapshot, {name: tuple(value.shape) for name, value in expected.items()})
        given = {name: mx.array(np.array(snapshot[name])).astype(value.dtype) for name, value in expected.items()}
        leaves = {name: given.pop(f"leaves.{name}") for name in self._state["leaves"]}
        optimizer = [
            _unflattened({n.removeprefix(start): v for n, v in given.items() if n.startswith(start)}, own)
            for i, own in enumerate(self._state["optimizer"])
            for start in [f"optimizer.{i}."]
        ]
        self._state, self._steps = {"leaves": leaves, "optimizer": optimizer}, int(given["steps"])

    def _advance(self, batch: Placed) -> Array:
        # The key is made here, of numbers: what a step draws depends on the seed and on the steps done, nothing else.
        key = mx.random.key((self._seed * 2**32 + self._steps) % 2**64)
        given = batch if batch.lengths is not None else batch[:2]
        self._state, value = self._step(self._state, key, *given)
        mx.async_eval(self._state, value)
        self._steps += 1
        return value

    def _named(self) -> dict[str, Array]:
        """The arrays of the state by flat names."""
        return dict(tree_flatten(self._state)) | {"steps": mx.array(self._steps)}


def _placed(batch: tuple[Array, ...]) -> Placed:
    return Placed(*batch, *(None,) * (3 - len(batch)))


def _array(value: Any) -> Array:
    return value if isinstance(value, mx.array) else mx.array(np.asarray(value, order="C"))


def _unflattened(flat: dict[str, Array], like: dict[str, Any]) -> dict[str, Any]:
    """flat as the nested dict that like is; leaf names have dots of their own."""
    return {
        name: _unflattened({n.removeprefix(f"{name}."): v for n, v in flat.items() if n.startswith(f"{name}.")}, value)
        if isinstance(value, dict)
        else flat[name]
        for name, value in like.items()
    }


def _groups(optimizer: Optimizer, names: list[str]) -> list[tuple[list[str], optim.Optimizer]]:
    """The trained leaves of each group with the optimiser of that group."""
    groups: dict[Group, list[str]] = {}
    for name in names:
        group = optimizer.group(name)
        if group.lr > 0 and not is_statistic(name):
            groups.setdefault(group, []).append(name)
    return [(members, _rule(optimizer, group)) for group, members in groups.items()]


def parameter_groups(optimizer: Optimizer) -> optim.MultiOptimizer:
    """See ptd.contract.Backend; the name of a leaf is its path, so one serves any module."""
    groups = [group for group in optimizer.groups() if group.lr > 0]
    filters = [lambda path, _, group=group: optimizer.group(path) == group for group in groups]
    return optim.MultiOptimizer([*(_rule(optimizer, group) for group in groups), _Frozen()], filters)


class _Frozen(optim.Optimizer):
    """Leaves stay, also where a loop sets the learning rate of all groups."""

    def init_single(self, parameter: Array, state: dict) -> None:
        pass

    def apply_single(self, gradient: Array, parameter: Array, state: dict) -> Array:
        return parameter


def _rule(optimizer: Optimizer, group: Group) -> optim.Optimizer:
    warm = optimizer.warmup_steps
    rate: Callable = optim.cosine_decay(group.lr, optimizer.total_steps - warm)
    if warm:
        rate = optim.join_schedules([optim.linear_schedule(0.0, group.lr, warm), rate], [warm])
    # mlx leaves Adam's bias correction out unless told otherwise.
    return optim.AdamW(rate, weight_decay=group.weight_decay, bias_correction=True)


def _loss(y: Array, targets: Array) -> Array:
    are_classes = mx.issubdtype(targets.dtype, mx.integer)
    check_targets(targets.shape, are_classes, y.shape)
    if are_classes:
        return nn.losses.cross_entropy(y, targets, reduction="mean")
    return mx.mean((y - targets) ** 2)


def _dropout(key: Array) -> Any:
    keys = [key]

    def dropout(x: Array, rate: float, over_time: bool) -> Array:
        keys[0], own = mx.random.split(keys[0])
        return dropped(x, rate, over_time, own)

    return dropout
