"""The speed measurements of the jax backend run, on sizes that say nothing about speed."""

from __future__ import annotations

import dataclasses

import pytest

import ptd
from ptd.speed import TRAINING_STEPS
from ptd_jax import JaxBackend, speed
from ptd_jax import backend as be


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch):
    monkeypatch.setattr(speed, "BUDGET", 0.0)


SMALL = dataclasses.replace(TRAINING_STEPS["Text"], batch=2, length=16, layers=1, H=4, P=4, blocks=1)


def test_training_step_is_timed_with_its_memory():
    (figure,) = speed.training_steps(be, rows={"Text": SMALL}, activations="bfloat16", steps=2)
    assert figure.label == "Text 2 x 16, bfloat16"
    assert 0 < figure.seconds < 1
    assert 0 < figure.gibibytes < 0.1
    assert figure.ratio == figure.other / figure.seconds


def test_layer_is_timed_against_the_plain_formulation():
    (figure,) = speed.layers(be, layer=ptd.S5(2, 4), shapes=[(1, 20)])
    assert figure.ratio == figure.other / figure.seconds
    assert figure.note.endswith("form scan in blocks of 20")


def test_two_devices_are_not_measured_on_one():
    assert list(speed.two_devices(be)) == []


def test_recurrences_are_compared_with_a_copy():
    figures = list(speed.recurrences(be, rows={"Text": SMALL}, names=["loop"]))
    assert [figure.label.partition(", (")[0] for figure in figures] == [
        "carries by loop, forward",
        "carries by loop, forward + backward",
    ]
    assert all(0 < figure.fraction < 1 for figure in figures)


def test_the_kernel_of_learners_is_held_to_its_parts(monkeypatch):
    calls = []
    monkeypatch.setattr(speed, "layers", lambda backend, **options: calls.append((backend.recurrence, options)) or [])
    assert list(speed.per_feature(JaxBackend("gpu"))) == []
    assert [(name, options["form"]) for name, options in calls] == [("tree", "convolution")] + 3 * [
        ("pallas", "chunked")
    ]
    assert all(options["kernels"].per_feature_chunks is None for _, options in calls)
