"""Which graphs a learner captures and keeps, with a graph that runs its work anew where a GPU would replay it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ptd
from ptd.model import SequenceModel
from ptd.optimization import Optimizer
from ptd_torch import backend, training

MODEL = SequenceModel(ptd.S5(4, 4), 2, 1, 3, norm="batch")
LEAVES = MODEL.initialize(np.random.default_rng(0), init="legs")


class Graph:
    """Replays by running again, into where the first run wrote."""

    def __init__(self, run):
        self.run, self.result = run, run()

    def replay(self):
        self.result.copy_(self.run())


@pytest.fixture
def capturing(monkeypatch):
    """A learner that captures, and what it captured."""
    graphs = []

    def captured(run):
        graphs.append(Graph(run))
        return graphs[-1], graphs[-1].result

    monkeypatch.setattr(training, "captured", captured)
    made = learner()
    made._replays = True
    return made, graphs


def learner():
    return backend.learner(MODEL, LEAVES, Optimizer(lr=0.01, total_steps=20), 0)


def samples(count):
    rng = np.random.default_rng(count)
    return rng.standard_normal((count, 8, 1)).astype(np.float32), rng.integers(0, 3, count)


def test_training_and_evaluation_by_graphs_are_those_without(capturing):
    made, graphs = capturing
    found = []
    for each in (made, learner()):
        data, rng = each.place(*samples(10)), np.random.default_rng(0)
        order = np.stack([rng.permutation(10)[:4] for _ in range(5)])
        losses, before = each.train(data, order), each.evaluate(data, np.arange(10), 4)
        found.append([losses, before, each.train(data, order), each.evaluate(data, np.arange(9), 4)])
    for one, expected in zip(*found, strict=True):
        assert_array_equal(one, expected)
    assert len(graphs) == 2


def test_a_single_batch_is_evaluated_without_a_graph(capturing):
    made, graphs = capturing
    made.evaluate(made.place(*samples(4)), np.arange(4), 4)
    assert not graphs


def test_graphs_of_the_sets_used_last_are_kept_and_no_more(capturing):
    made, graphs = capturing
    sets = [made.place(*samples(6)) for _ in range(training.GRAPHS + 1)]
    for data in (*sets[:-1], sets[0], sets[-1], sets[0]):
        made.evaluate(data, np.arange(6), 2)
    assert len(graphs) == len(made._graphs) + 1 == training.GRAPHS + 1
    made.evaluate(sets[1], np.arange(6), 2)
    assert len(graphs) == training.GRAPHS + 2
