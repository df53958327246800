"""benchmarks/as_original.py: each rule does to a run what its name says."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from lra_sources import load, made_up_reviews, tiny, write_lines

import ptd
from as_original import RULES, TEXT_SCHEDULE, from_the_peak, renamed, rising
from ptd_conformance.lra import reviews, store
from ptd_conformance.lra.clock import Clock
from ptd_conformance.lra.tasks import TASKS, Order
from ptd_conformance.lra.training import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    TASKS["listops"].make(Order(base, base, samples=60))
    return load(base, "listops")


def test_the_schedule_begins_at_the_peak_and_ends_one_warm_up_early():
    rule = ptd.Optimizer(lr=1.0, total_steps=8, warmup_steps=2)
    found = from_the_peak(rule, torch.arange(8)).numpy()
    np.testing.assert_allclose(found, [1, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4, 0.0669873, 0], atol=1e-6)


@pytest.mark.parametrize("seen", [False, True])
def test_blocks_see_padding_only_under_its_rule(seen, data, tmp_path):
    """Other tokens in the padding, which pooling leaves out, change an output exactly if blocks see them."""
    with RULES["padding"] if seen else contextlib.nullcontext():
        run = Run(tiny("listops", "s5"), data, ptd.backend("torch"), 0, tmp_path)
    part = data.splits["test"]
    lengths = np.minimum(part.lengths, 100)
    other = np.where(np.arange(part.inputs.shape[1]) < lengths[:, None], part.inputs, 3)
    first, second = (run.learner.outputs(inputs, lengths) for inputs in (np.asarray(part.inputs), other))
    assert (np.abs(first - second).max() > 1e-4) == seen


def test_without_the_margin_modes_may_grow():
    layer = ptd.S5(2, 4)
    leaves = ptd.initialize(layer, np.random.default_rng(0)) | {"Lambda_re": np.full(2, 0.5)}
    assert (layer.eigenvalues(leaves).real == -ptd.layers.STABILITY_MARGIN).all()
    with RULES["unclamped"]:
        assert (layer.eigenvalues(leaves).real == 0.5).all()


def test_cut_weights_have_the_same_variance_and_end_at_two_deviations():
    recipe = tiny("listops", "s5")
    model = ptd.SequenceModel(ptd.S5(64, 4), n_layers=1, d_input=16, d_output=2)
    before = recipe.leaves(model, 0)
    with RULES["weights"]:
        after = recipe.leaves(model, 0)
    gate = 8 * after["blocks.0.gate.weight"]  # fan-in 64
    assert 1.9 < np.abs(gate).max() < 2.28
    assert gate.std() == pytest.approx(1, abs=0.05)
    assert all((before[name] == after[name]).all() for name in before if not name.endswith(".weight"))


def test_the_rising_cosine_is_zero_at_its_step_and_has_risen_to_a_quarter_at_the_end():
    rule = ptd.Optimizer(lr=1.0, total_steps=125_000, warmup_steps=5_000)
    found = rising(rule, torch.tensor([0, 2_500, 5_000, TEXT_SCHEDULE, 95_000, 125_000])).numpy()
    np.testing.assert_allclose(found, [0, 1 / 2, 1, 0, 1, 1 / 4], atol=1e-6)


def test_of_all_modes_one_of_each_pair_keeps_its_frequency():
    recipe = tiny("text", "s4-ptd")
    with RULES["modes"]:
        model = recipe.description(100)
        leaves = recipe.leaves(model, 0)
    decays, frequencies = (leaves[f"blocks.0.layer.Lambda_{part}"].reshape(-1) for part in ("re", "im"))
    kept = frequencies > 1e-3
    assert model.layer.modes == frequencies.size == recipe.layer["d_state"] == 8
    assert (kept.sum(), (frequencies[~kept] == 1e-4).all()) == (3, True)  # and two are real in this perturbed matrix
    assert all(np.isclose(decays[~kept], decay).any() for decay in decays[kept])  # its conjugate


def test_all_reviews_are_trained_on_and_the_test_set_selects(tmp_path, monkeypatch):
    made_up = made_up_reviews()
    monkeypatch.setattr(reviews, "CONTENT", reviews.digest(sorted(made_up)))
    write_lines(tmp_path, made_up)
    TASKS["text"].make(Order(tmp_path, tmp_path))
    before = store.load(tmp_path, "text")
    with RULES["reviews"]:
        after = store.load(tmp_path, "text")
    sizes = {name: len(part.targets) for name, part in before.splits.items()}
    assert len(after.splits["train"].targets) == sizes["train"] + sizes["validation"]
    for part in ("validation", "test"):
        np.testing.assert_array_equal(after.splits[part].inputs, before.splits["test"].inputs)
    assert after.key != before.key


def test_a_run_under_all_rules_goes_on_as_itself_alone(data, tmp_path):
    small, torch_ = tiny("listops", "s5", epochs=1), ptd.backend("torch")
    with RULES["schedule"], RULES["padding"], RULES["unclamped"]:
        assert Run(renamed(small, ["schedule", "padding", "unclamped"]), data, torch_, 0, tmp_path).go(Clock())
    with pytest.raises(ValueError, match="recipe"):
        Run(small, data, torch_, 0, tmp_path).restore()
