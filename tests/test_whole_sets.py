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
        self.step, self.outputs, self.model = learner.step, learner.outputs, MODEL


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


@pytest.mark.parametrize("name", ["jax", "torch", "mlx"])
@pytest.mark.parametrize(
    ("inputs", "targets", "lengths", "message"),
    [
        (INPUTS, TARGETS + 1, None, r"targets: expected class numbers in 0\.\.2 from d_output, got 3"),
        (INPUTS, TARGETS - 1, None, r"targets: .*got -1"),
        (INPUTS + 1, TARGETS, None, r"inputs: expected tokens in 0\.\.4 from d_input, got 5"),
        (INPUTS.astype(np.uint8) + 200, TARGETS, None, "inputs: .*got 204"),
        (INPUTS, TARGETS, LENGTHS + 1, r"lengths: expected values in 0\.\.6, .*got 7"),
    ],
)
def test_samples_that_are_none_of_the_models_are_refused(name, inputs, targets, lengths, message):
    """By step and by place, before anything is trained on: frameworks read past ends, or train on what they find."""
    leaves = MODEL.initialize(np.random.default_rng(0), init="legs")
    learner = ptd.backend(name).learner(MODEL, leaves, RULE, 0)
    for call in (learner.step, learner.place):
        with pytest.raises(ValueError, match=message):
            call(inputs, targets, lengths)
    for leaf, value in learner.parameters().items():
        np.testing.assert_array_equal(value, leaves[leaf].astype(np.float32))


@pytest.mark.parametrize("name", ["jax", "torch", "mlx", "steps"])
def test_rows_that_a_set_does_not_have_are_refused(name, learner):
    leaves = learner.parameters()
    one = Stepping(learner) if name == "steps" else ptd.backend(name).learner(MODEL, leaves, RULE, 0)
    placed = one.place(INPUTS, TARGETS, LENGTHS)
    with pytest.raises(ValueError, match=r"order: expected row numbers in 0\.\.6 from the set, got 7"):
        one.train(placed, np.array([[0, 1], [2, 7]]))
    with pytest.raises(ValueError, match=r"indices: .*got -1"):
        one.evaluate(placed, np.array([-1, 3]), 2)


@pytest.mark.parametrize(
    ("model", "shape", "fits"),
    [
        (ptd.SequenceModel(ptd.S5(4, 4), 1, 1, 3, input=ptd.Input((2 / 255,), (-1.0,))), (2, 6), 6),
        (ptd.SequenceModel(ptd.S5(4, 4), 1, 2, 3, input=ptd.Input()), (2, 6, 2), 6),
        (ptd.SequenceModel(ptd.S5(4, 4), 1, 5, 3, encoder="embedding", pair=True), (2, 2, 6), 6),
    ],
    ids=["pixels", "colours", "pairs"],
)
def test_lengths_are_held_against_the_time_axis(model, shape, fits):
    lengths = np.full(shape[:-1] if model.pair else shape[:1], fits)
    model.check_samples(np.zeros(shape, np.uint8), np.zeros(2, int), lengths)
    with pytest.raises(ValueError, match="lengths: "):
        model.check_samples(np.zeros(shape, np.uint8), np.zeros(2, int), lengths + 1)
