"""Run by test_jax_sharding in a process of its own, which sees four devices; by hand on the GPUs of a machine, too."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from several_devices import L, run_on_two_devices_is_that_of_one, same_leaves
from sharded import moved_whole, register_kernels

import ptd
from ptd_jax import JaxBackend, backend
from ptd_jax.training import CHUNK

DEVICES = min(4, jax.device_count())
# Under a final batch norm the gradient by this bias is all rounding, of which Adam makes full steps.
RULE = ptd.Optimizer(lr=1e-2, total_steps=9, frozen=("encoder.bias",))


class Exact(JaxBackend):
    """Whose training runs round no factors: products of half a batch need not round as those of the whole do."""

    def fast_products(self) -> AbstractContextManager:
        return self.precision("float32")


def learner_is_data_parallel(layer: ptd.layers.Layer, own: JaxBackend, batch: int, *, pairs: bool) -> None:
    """Losses, leaves and outputs of a learner, on sequences or on pairs of some length, are one device's,

    moments and dropout included; it goes on from a snapshot bit for bit; nothing but sums moves between devices, and
    the memory of the state it is given is reused.
    """
    model = ptd.SequenceModel(
        layer, 1, 1, 3, norm="batch", norm_epsilon=0.1, dropout=0.3, tie_dropout=not pairs, pair=pairs, final_norm=True
    )
    leaves, rng = model.initialize(np.random.default_rng(0), init="legs"), np.random.default_rng(8)
    inputs = rng.standard_normal((50, 2, L, 1) if pairs else (50, L, 1)).astype(np.float32)
    data = inputs, rng.integers(0, 3, 50), rng.integers(9, L, (50, 2)) if pairs else None
    order = rng.permutation(4 * batch).reshape(4, batch)
    one = backend.learner(model, leaves, RULE, 0)
    many, again = (own.learner(model, leaves, RULE, 0, devices=DEVICES) for _ in range(2))
    losses, sets = [], [learner.place(*data) for learner in (one, many)]
    for learner, whole in zip((one, many), sets, strict=True):
        losses.append([learner.train(whole, order[:2]), learner.snapshot(), learner.train(whole, order[2:])])
    assert_allclose(losses[1][0], losses[0][0], rtol=1e-5)
    assert_allclose(losses[1][2], losses[0][2], rtol=1e-4)
    same_leaves(many, one)
    rows = np.arange(36, 50)
    assert_allclose(many.evaluate(sets[1], rows, batch), one.evaluate(sets[0], rows, batch), rtol=1e-4, atol=1e-5)
    again.restore(losses[1][1])
    assert (again.train(sets[1], order[2:]) == losses[1][2]).all()
    assert all((value == many.parameters()[name]).all() for name, value in again.parameters().items())
    arguments = (many._state, many._key, sets[1], np.zeros((CHUNK, batch), np.int32), np.int32(1))
    with many._placement.context():  # as train calls it: what is compiled already
        compiled = many._programs.run.lower(*arguments).compile()
    assert moved_whole(compiled) == set()
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves(many._state))


def learner_takes_batches_from_anywhere() -> None:
    """Arrays of the host and of any one device; noise has an axis of the batch."""
    model = ptd.SequenceModel(ptd.S5(4, 4), 1, 1, 3, norm="batch")
    leaves, rng = model.initialize(np.random.default_rng(0), init="legs"), np.random.default_rng(9)
    batch = rng.standard_normal((6, L, 1)).astype(np.float32), rng.integers(0, 3, 6), rng.integers(9, L, 6)
    elsewhere = tuple(jax.device_put(part, jax.devices()[1]) for part in batch)
    one, many = (backend.learner(model, leaves, RULE, 0, devices=n) for n in (1, DEVICES))
    expected = [float(one.step(*batch)) for _ in range(2)]
    assert_allclose([many.step(*batch), many.step(*elsewhere)], expected, rtol=1e-5)
    noise = [rng.standard_normal((6, L, 4)).astype(np.float32)]
    assert_allclose(many.outputs(elsewhere[0], None, noise), one.outputs(batch[0], None, noise), rtol=1e-4, atol=1e-5)


def batch_of_other_rows_is_refused() -> None:
    """Each would be filled up by itself, to rows nobody gave."""
    model = ptd.SequenceModel(ptd.S5(4, 4), 1, 1, 3, norm="batch")
    learner = backend.learner(model, model.initialize(np.random.default_rng(0)), RULE, 0, devices=DEVICES)
    for targets, lengths, name in ((np.zeros(5, int), None, "targets"), (np.zeros(8, int), np.full(5, L), "lengths")):
        with pytest.raises(ValueError, match=f"{name}: expected 8 rows, one per input, got 5"):
            learner.step(np.zeros((8, L, 1), np.float32), targets, lengths)


def own_mesh_may_be_the_context_too() -> None:
    """With a mesh that the caller has set, under the caller's names."""
    model, mesh = ptd.SequenceModel(ptd.S5(4, 4), 1, 1, 3), jax.make_mesh((DEVICES,), ("data",))
    leaves, batch = model.initialize(np.random.default_rng(0)), (np.ones((8, L, 1), np.float32), np.arange(8) % 3)
    expected = backend.learner(model, leaves, RULE, 0).step(*batch)
    with jax.set_mesh(mesh):
        learner = backend.learner(model, leaves, RULE, 0, mesh=mesh)
        assert_allclose(learner.step(*batch), expected, rtol=1e-5)
        placed = learner.place(*batch)
        assert np.isfinite(learner.train(placed, np.arange(8)[None])).all()
        assert learner.evaluate(placed, np.arange(3), 8).shape == learner.outputs(batch[0])[:3].shape


if __name__ == "__main__":
    register_kernels()
    kernels = JaxBackend("gpu", "kernels", chunk=1)
    learner_is_data_parallel(ptd.S5(4, 4, bidirectional=True), kernels, 10, pairs=True)
    learner_is_data_parallel(ptd.S4D(4, 4), backend, 10, pairs=False)
    learner_takes_batches_from_anywhere()
    batch_of_other_rows_is_refused()
    own_mesh_may_be_the_context_too()
    with tempfile.TemporaryDirectory() as temporary:
        learner = run_on_two_devices_is_that_of_one(Exact(), Path(temporary))
        assert learner._placement.mesh.size == 2
    print("equal")
