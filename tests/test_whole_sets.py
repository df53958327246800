"""The learner's whole-set methods built on single steps do what a backend's own do."""

from __future__ import annotations

import numpy as np
import pytest

import ptd
from ptd.whole_sets import WholeSets

MODEL = ptd.SequenceModel(ptd.S5(4, 4), 1, 5, 3, encoder="embedding")
RULE = ptd.Optimizer(lr=1e-2, total_steps=9)
RNG = np.random.default_rng(0)
INPUTS, TARGETS, LENGTHS = RNG.integers(0, 5, (7, 6)), np.arange(7) % 3, np.array([6, 3, 6, 1, 2, 6, 5])


class Stepping(WholeSets):
    """A learner with step and outputs only: the jax backend's."""

    def __init__(self, learner):
        self.step, self.outputs = learner.step, learner.outputs


@pytest.fixture
def learner():
    leaves = MODEL.initialize(np.random.default_rng(0), init="legs")
    return ptd.backend("jax").learner(MODEL, leaves, RULE, seed=0)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_training_on_a_set_is_the_learners_own(learner, lengths):
    own = ptd.backend("jax").learner(MODEL, learner.parameters(), RULE, seed=0)
    stepping, order = Stepping(learner), np.array([[0, 1, 2], [6, 5, 4]])
    losses = stepping.train(stepping.place(INPUTS, TARGETS, lengths), order)
    np.testing.assert_allclose(losses, own.train(own.place(INPUTS, TARGETS, lengths), order), rtol=1e-5)
    assert losses.dtype == np.float32


def test_evaluation_of_rows_is_the_learners_own(learner):
    stepping, rows = Stepping(learner), np.array([6, 0, 3])
    found = stepping.evaluate(stepping.place(INPUTS, TARGETS, LENGTHS), rows, 2)
    expected = learner.evaluate(learner.place(INPUTS, TARGETS, LENGTHS), rows, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_no_steps_give_no_losses(learner):
    for one in (learner, Stepping(learner)):
        assert one.train(one.place(INPUTS, TARGETS), np.zeros((0, 3), int)).shape == (0,)


@pytest.mark.parametrize("name", ["jax", "torch", "mlx"])
def test_every_sample_of_a_sequence_may_have_a_class(name):
    """Without pooling; the loss is the mean over samples and sequences."""
    model = ptd.SequenceModel(ptd.S5(4, 4), 1, 2, 3, pooling="none")
    leaves = model.initialize(np.random.default_rng(0), init="legs")
    learner = ptd.backend(name).learner(model, leaves, RULE, 0)
    inputs = np.random.default_rng(1).standard_normal((2, 5, 2)).astype(np.float32)
    classes = np.arange(10, dtype=np.int32).reshape(2, 5) % 3
    y = learner.outputs(inputs).astype(np.float64)
    expected = np.mean(np.log(np.exp(y).sum(-1)) - np.take_along_axis(y, classes[..., None], -1)[..., 0])
    np.testing.assert_allclose(float(learner.step(inputs, classes)), expected, rtol=1e-5)
