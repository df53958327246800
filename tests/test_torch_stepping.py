"""Step mode with kept states: a stepper gives what the whole run gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd_torch import backend
from ptd_torch.stepping import Stepper

be = backend.on("cpu")
BATCH, L = 3, 9
MODELS = {
    "s5, linear": ptd.SequenceModel(ptd.S5(6, 4), 2, 3, 4, norm="batch", pooling="none"),
    "s4d, tokens": ptd.SequenceModel(ptd.S4D(6, 4), 2, 7, 4, encoder="embedding", pooling="none"),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    return be.module(request.param, request.param.initialize(np.random.default_rng(0), init="legs")).eval()


@pytest.fixture
def layer():
    return be.S5(4, 8, init="legs")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def inputs(model) -> torch.Tensor:
    if model.description.encoder == "embedding":
        return torch.randint(0, 7, (BATCH, L), generator=torch.Generator().manual_seed(0))
    return draw(BATCH, L, 3)


def stepped(stepper: Stepper, u: torch.Tensor) -> torch.Tensor:
    return torch.stack([stepper(u[:, k]) for k in range(u.shape[1])], dim=1)


def test_steps_of_a_model_are_its_run(model):
    u = inputs(model)
    assert_close(stepped(be.stepper(model, (BATCH,)), u), model(u), rtol=0, atol=1e-5)


def test_steps_are_one_graph_for_the_compiler(model, monkeypatch):
    monkeypatch.setattr(type(be), "compiled", lambda _, step: torch.compile(step, backend="aot_eager", fullgraph=True))
    stepper, u = Stepper(model, (BATCH,), compiled=True), inputs(model)
    assert_close(stepped(stepper, u), model(u), rtol=0, atol=1e-5)


def test_reset_goes_back_to_rest_or_to_a_state(layer):
    stepper, u = be.stepper(layer, (BATCH,)), draw(BATCH, L, 4)
    first = stepped(stepper, u)
    stepper.reset()
    assert torch.equal(stepped(stepper, u[:, :4]), first[:, :4])
    middle = stepper.state
    stepped(stepper, u[:, 4:])
    stepper.reset(middle)
    assert torch.equal(stepped(stepper, u[:, 4:]), first[:, 4:])


def test_memory_of_states_is_that_of_the_modes_whatever_the_steps(layer):
    stepper, u = be.stepper(layer, (BATCH,)), draw(BATCH, L, 4)
    before = stepper.state_bytes
    stepped(stepper, u)
    assert before == stepper.state_bytes == BATCH * layer.description.modes * 2 * 4


def test_steps_use_the_parameters_of_the_moment(layer):
    stepper, u = be.stepper(layer, (BATCH,)), draw(BATCH, L, 4)
    stepped(stepper, u)
    with torch.no_grad():
        layer.D.mul_(2)
    stepper.reset()
    assert_close(stepped(stepper, u), layer(u), rtol=0, atol=1e-5)


def test_outputs_need_no_gradient_and_are_not_overwritten(layer):
    stepper, u = be.stepper(layer, (BATCH,)), draw(BATCH, L, 4)
    first = stepper(u[:, 0])
    copy = first.clone()
    stepper(u[:, 1])
    assert not first.requires_grad
    assert torch.equal(first, copy)


def test_another_batch_or_state_is_refused(layer):
    stepper = be.stepper(layer, (BATCH,))
    with pytest.raises(
        ValueError, match=r"^u_k: expected leading axes \(3,\), got \(1, 4\); make a stepper of this batch$"
    ):
        stepper(draw(1, 4))
    with pytest.raises(
        ValueError, match=r"^state: expected shapes \[\(3, 4, 2\)\], got \[\(1, 4, 2\)\]; take it from "
    ):
        stepper.reset(torch.zeros(1, 4, 2))


def test_a_bidirectional_layer_is_refused_at_the_first_step():
    stepper = be.stepper(be.S5(4, 8, init="legs", bidirectional=True), (BATCH,))
    with pytest.raises(ValueError, match=r"bidirectional: expected False for step mode"):
        stepper(draw(BATCH, 4))
