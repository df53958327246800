"""A learner's graphs of steps and evaluations, by stand-ins for those of CUDA on a CPU."""

from __future__ import annotations

import contextlib
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import ptd
from ptd.model import SequenceModel
from ptd.optimization import Optimizer
from ptd_torch import backend, training
from ptd_torch.ranks import ALONE

be = backend.on("cpu")
ROWS, TARGETS = np.arange(4), np.array([0, 1, 0, 1])
INPUTS = np.random.default_rng(1).standard_normal((4, 6, 1)).astype(np.float32)


def recorded(run):
    """As ptd_torch.graphs.captured, with a replay that does the work again where the first result lies."""
    result = run()
    return SimpleNamespace(replay=lambda: result.copy_(run())), result


@pytest.fixture
def captures(monkeypatch):
    """One entry a capture: what products may round to as it is made."""
    found = []

    def captured(run, *, watched):
        found.append(torch.get_float32_matmul_precision())
        return recorded(run)

    monkeypatch.setattr(training, "captured", captured)
    return found


def learner(replays=True):
    model = SequenceModel(ptd.S5(8, 4), n_layers=1, d_input=1, d_output=2)
    found = be.learner(model, model.initialize(np.random.default_rng(0)), Optimizer(lr=0.01, total_steps=10), 0)
    found._replays = replays
    return found


def course(one, first):
    """Outputs before and after steps, and after a restore."""
    placed = one.place(INPUTS, TARGETS)
    before = one.evaluate(placed, ROWS[:3], 2)
    one.train(placed, np.array([[0, 1], [2, 3]]))
    after = one.evaluate(placed, ROWS[::-1], 2)
    one.restore(first)
    return np.concatenate([before, after, one.evaluate(placed, ROWS, 2)])


def test_evaluation_by_graphs_is_that_of_the_code_after_steps_and_a_restore(captures):
    own, plain = learner(), learner(replays=False)
    first = own.snapshot()
    assert_array_equal(course(own, first), course(plain, first))
    assert len(captures) == 2


def test_a_single_batch_is_evaluated_without_a_graph(captures):
    own = learner()
    own.evaluate(own.place(INPUTS, TARGETS), ROWS, 4)
    assert not captures


def test_sets_that_share_their_inputs_have_graphs_of_their_own(captures):
    inputs, lengths = torch.from_numpy(INPUTS), np.array([6, 1, 2, 6])
    own, plain = learner(), learner(replays=False)
    own.evaluate(whole := own.place(inputs, TARGETS), ROWS, 2)
    part = own.place(inputs, TARGETS, lengths)
    assert part.inputs is whole.inputs
    assert_array_equal(own.evaluate(part, ROWS, 2), plain.evaluate(plain.place(INPUTS, TARGETS, lengths), ROWS, 2))


@pytest.mark.parametrize(
    "rounding", [be.fast_products, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["fast", "autocast"]
)
def test_products_of_another_precision_have_graphs_of_their_own(rounding, captures):
    own = learner()
    placed = own.place(INPUTS, TARGETS)
    for context in (contextlib.nullcontext, rounding, contextlib.nullcontext, rounding):
        with context():
            own.evaluate(placed, ROWS, 2)
    assert len(captures) == 2


def test_a_set_that_is_freed_takes_its_graphs_with_it(monkeypatch):
    monkeypatch.setattr(training, "captured", lambda run, watched: (SimpleNamespace(replay=lambda: None), run()))
    own = learner()
    placed = own.place(INPUTS, TARGETS, np.array([6, 1, 2, 6]))
    own.train(placed, ROWS[None])
    own.evaluate(placed, ROWS, 2)
    inputs = weakref.ref(placed.inputs)
    assert len(own._graphs) == 2
    del placed
    gc.collect()
    assert inputs() is None
    assert not own._graphs


def test_a_method_runs_where_its_owners_device_is_the_current_one(monkeypatch):
    entered = []

    @contextlib.contextmanager
    def device(which):
        entered.append(which)
        yield
        entered.append("left")

    class Owner:
        torch_device, ranks = torch.device("cuda:1"), ALONE

        @training._in_own_place
        def twice(self, number, *, plus):
            entered.append(number)
            return 2 * number + plus

    monkeypatch.setattr(torch.cuda, "device", device)
    assert Owner().twice(3, plus=1) == 7
    assert entered == [torch.device("cuda:1"), 3, "left"]
