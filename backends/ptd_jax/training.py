"""Training a SequenceModel with optax: one compiled step, or whole runs of steps in one compiled loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from numpy.typing import NDArray

from ptd import checks
from ptd.arrays import Array
from ptd.model import SequenceModel, Training, is_statistic
from ptd.optimization import Group, Optimizer
from ptd.whole_sets import Placed, as_set, batches, check_rows, check_targets, checked_rows

from . import JaxBackend
from .dropout import dropout, step_key
from .passes import training_block, training_decoder
from .placement import Placement, counts, devices, joined, mine, total

#: Steps per call of the compiled loop. It is fixed, and how many of them run is an argument: one program whatever
#: the number of steps, so that splitting a run differently cannot change its rounding.
CHUNK = 256

#: By platform. XLA joins products that share a factor, such as a chunk's samples, and then copies the parts of the
#: result apart: two passes more than reading the samples twice.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_dot_merger_threshold_mb": 0}}


class State(NamedTuple):
    """What a training step changes."""

    leaves: dict[str, Array]
    optimizer: Any
    steps: Array


class Programs(NamedTuple):
    """The compiled functions of a model and optimiser; learners of the same two share them."""

    transform: optax.GradientTransformation
    step: Callable[..., tuple[State, Array]]
    run: Callable[..., tuple[State, Array]]
    outputs: Callable[..., Array]
    rows: Callable[..., Array]


@functools.lru_cache(maxsize=16)
def _programs(
    backend: JaxBackend, model: SequenceModel, optimizer: Optimizer, activations: str | None, placement: Placement
) -> Programs:
    transform = parameter_groups(optimizer)

    def loss(trained: dict, statistics: dict, own: Placed, batch: int, key: Array) -> Any:
        call = {"lengths": own.lengths, "training": Training(dropout(key)), "activations": activations}
        call["run_block"] = functools.partial(training_block, key=key, batch=batch)
        call["run_decoder"] = functools.partial(training_decoder, batch=batch)
        y, updated = backend.apply_model(model, trained | statistics, own.inputs, **call)
        return _mean(_losses(y, own.targets), batch), updated

    def step(state: State, key: Array, own: Placed, batch: int) -> tuple[State, Array]:
        trained = _trained(state.leaves)
        statistics = {name: value for name, value in state.leaves.items() if is_statistic(name)}
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, updated), g = gradient(trained, statistics, own, batch, step_key(key, state.steps))
        value, g = total((value, g))
        changes, optimizer_state = transform.update(g, state.optimizer, trained)
        leaves = optax.apply_updates(trained, changes) | statistics | updated
        return State(leaves, optimizer_state, state.steps + 1), value

    def once(state: State, key: Array, batch: Placed) -> tuple[State, Array]:
        return step(state, key, mine(batch), len(batch.inputs))

    def run(state: State, key: Array, placed: Placed, order: Array, count: Array) -> tuple[State, Array]:
        def body(k: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            state, value = step(carry[0], key, placed.rows(mine(order[k])), order.shape[1])
            return state, carry[1].at[k].set(value)

        return lax.fori_loop(0, count, body, (state, jnp.zeros(len(order))))

    def outputs(leaves: dict, inputs: Array, lengths: Any, layer_noise: Any) -> Array:
        call = {"lengths": lengths, "layer_noise": layer_noise, "activations": activations}
        return backend.apply_model(model, leaves, inputs, **call)

    def rows(leaves: dict, placed: Placed, index: Array) -> Array:
        own = placed.rows(mine(index))
        return joined(outputs(leaves, own.inputs, own.lengths, None), len(index))

    options = COMPILER_OPTIONS.get(backend.platform)
    stepped = jax.jit(placement.on_each(once), compiler_options=options)
    looped = jax.jit(placement.on_each(run), donate_argnums=0, compiler_options=options)
    return Programs(transform, stepped, looped, *(jax.jit(placement.on_each(each)) for each in (outputs, rows)))


class JaxLearner:
    """The contract's Learner; loss and outputs stay on the device until they are looked at."""

    def __init__(
        self,
        backend: JaxBackend,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
        activations: str | None,
        placement: Placement,
    ):
        # copies: the compiled loop reuses the memory of the state it is given
        leaves = {name: jnp.array(value, "float32") for name, value in params.items()}
        self._model, self._placement = model, placement
        self._programs = _programs(backend, model, optimizer, activations, self._placement)
        state = State(leaves, self._programs.transform.init(_trained(leaves)), jnp.zeros((), jnp.int32))
        self._state = self._placement.whole(state)
        self._key = jax.random.key(seed)

    def step(self, inputs: Array, targets: Array, lengths: Array | None = None) -> Array:
        """One optimiser step; the loss before it, as a 0-d array."""
        if self._placement.mesh is not None:
            check_rows(inputs, targets, lengths)  # before each is split by its own length
        self._model.check_samples(inputs, targets, lengths)
        batch = self._placement.whole(Placed(inputs, targets, lengths))
        with self._placement.context():
            self._state, value = self._programs.step(self._state, self._key, batch)
        return value

    def outputs(
        self, inputs: Array, lengths: Array | None = None, layer_noise: list[Array] | None = None
    ) -> NDArray[np.float32]:
        """The model's outputs in evaluation mode."""
        self._model.check_samples(inputs, lengths=lengths)
        inputs, lengths, layer_noise = self._placement.whole((inputs, lengths, layer_noise))
        with self._placement.context():
            return np.asarray(self._programs.outputs(self._state.leaves, inputs, lengths, layer_noise))

    def parameters(self) -> dict[str, NDArray]:
        """The current leaves, on the host."""
        return {name: np.array(value) for name, value in self._state.leaves.items()}

    def place(self, inputs: NDArray, targets: NDArray, lengths: NDArray | None = None) -> Placed:
        return self._placement.whole(Placed(*as_set(self._model, inputs, targets, lengths)))

    def train(self, placed: Placed, order: NDArray[np.integer]) -> NDArray[np.float32]:
        losses, order = [], checked_rows("order", order, placed)
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            filled = np.concatenate([chunk, np.zeros((CHUNK - len(chunk), *chunk.shape[1:]), np.int32)])
            with self._placement.context():
                self._state, values = self._programs.run(self._state, self._key, placed, filled, np.int32(len(chunk)))
                losses.append(values[: len(chunk)])
        return np.concatenate([np.asarray(part) for part in losses]) if losses else np.zeros(0, np.float32)

    def evaluate(self, placed: Placed, indices: NDArray[np.integer], batch: int) -> NDArray[np.float32]:
        pieces = batches(checked_rows("indices", indices, placed), batch)
        with self._placement.context():
            parts = [self._programs.rows(self._state.leaves, placed, index) for index in pieces]
        return np.concatenate([np.asarray(part) for part in parts])[: len(indices)]

    def snapshot(self) -> dict[str, NDArray]:
        return {name: np.array(value) for name, value in _named(self._state).items()}

    def restore(self, snapshot: Mapping[str, NDArray]) -> None:
        expected = _named(self._state)
        checks.shapes("this learner", snapshot, {name: np.shape(value) for name, value in expected.items()})
        values = [jnp.array(snapshot[name], value.dtype) for name, value in expected.items()]
        self._state = self._placement.whole(jax.tree.unflatten(jax.tree.structure(self._state), values))


def _named(state: State) -> dict[str, Array]:
    """The arrays of a state by flat names, in the order of its flattened form."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): value
        for path, value in jax.tree_util.tree_leaves_with_path(state)
    }


def _trained(leaves: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in leaves.items() if not is_statistic(name)}


def parameter_groups(optimizer: Optimizer) -> optax.GradientTransformation:
    """AdamW with the rates, decays and schedule of an Optimizer, for any pytree whose leaves have core's names.

    The name of a leaf is its path joined by dots, so leaves may lie in dicts, modules or lists, at any depth.

    >>> transform = parameter_groups(Optimizer(lr=1e-2, total_steps=10, ssm_lr=1e-3))
    >>> params = {"layer": {"log_step": jnp.zeros(1)}, "gate": {"weight": jnp.zeros(1)}}
    >>> updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)
    >>> [round(float(update[0]), 5) for update in jax.tree.leaves(updates)]
    [-0.01, -0.001]
    """

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

    def label(path: tuple, _: Array) -> str:
        # nnx.Optimizer shows Variables at first, whose paths go on to their value, and bare arrays later.
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        return repr(optimizer.group(name))

    rules = {repr(group): rule(group) for group in optimizer.groups()}
    return optax.multi_transform(rules, lambda params: jax.tree_util.tree_map_with_path(label, params))


def _losses(y: Array, targets: Array) -> Array:
    """Cross entropies for integer targets, else squared errors."""
    are_classes = jnp.issubdtype(targets.dtype, jnp.integer)
    check_targets(targets.shape, are_classes, y.shape)
    if are_classes:
        return optax.softmax_cross_entropy_with_integer_labels(y, targets)
    return (y - targets) ** 2


def _mean(x: Array, batch: int) -> Array:
    """What a device's rows x of a batch add to its mean."""
    if devices() == 1:
        return jnp.mean(x)
    own = counts(x, batch)
    kept = x if own is None else jnp.where(own, x, 0.0)
    return jnp.sum(kept) / (batch * math.prod(x.shape[1:]))
