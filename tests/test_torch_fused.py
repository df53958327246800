"""Which parts of a training block run as kernels: what is named runs, or is refused with what it lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd.model import SequenceModel, gelu
from ptd_torch import backend, fused

be = backend.on("cpu")
OPTIMIZER = ptd.Optimizer(lr=1e-3, total_steps=10)


def model(layer: ptd.Layer | None = None, **options: Any) -> SequenceModel:
    base = {"norm": "batch", "activation": "half_glu1", "n_layers": 1, "d_input": 1, "d_output": 2}
    return SequenceModel(layer or ptd.S5(64, 4), **(base | options))


def learner(each: SequenceModel, **options: Any) -> Any:
    return be.learner(each, each.initialize(np.random.default_rng(0), init="legs"), OPTIMIZER, 0, **options)


@pytest.fixture
def triton(monkeypatch):
    """A device with Triton, as far as the choice of parts can tell."""
    monkeypatch.setattr(fused, "kernel_path", lambda device: "triton")


@pytest.mark.parametrize("name", fused.PARTS)
def test_part_named_where_there_are_no_kernels_is_refused(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = (
        rf"^fused: expected parts that can run here, got '{name}', which needs a GPU with Triton, not cpu; leave it"
    )
    with pytest.raises(ValueError, match=message):
        learner(model(), fused=[name])


def test_parts_are_chosen_by_table_or_by_name(triton, monkeypatch):
    x = torch.zeros(0)
    monkeypatch.setitem(fused.WIDEST, torch.float32, {"chunks": 0, "norm": 64, "gate": 32})
    assert fused.parts(model(), x) == {"norm"}
    assert fused.parts(model(prenorm=False), x) == {"norm"}
    assert fused.parts(model(norm="layer"), x) == set()
    assert fused.parts(model(), x.double()) == set()
    assert fused.parts(model(), x, ["gate", "chunks"]) == {"gate", "chunks"}


def test_learner_says_which_parts_run(triton):
    assert learner(model(), fused=["gate", "chunks"]).fused == {"gate", "chunks"}
    assert learner(model()).fused == {*fused.PARTS} - {"embedding", "full_end", "layer_norm"}
    assert learner(model(activation="gelu"), fused=()).fused == set()


def test_parts_are_left_to_array_code_where_there_are_no_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert learner(model()).fused == set()


@pytest.mark.parametrize(
    ("each", "name", "need"),
    [
        (model(ptd.S5(48, 4)), "chunks", "d_model a multiple of 64, not 48"),
        (model(ptd.S4D(64, 4)), "chunks", "an S5 layer"),
        (model(ptd.S4D(64, 4)), "states", "an S5 layer"),
        (model(ptd.S4D(64, 4)), "tiles", "an S5 layer"),
        (model(norm="layer"), "norm", "a batch norm with norm_epsilon=1e-05"),
        (model(norm_epsilon=1e-6), "norm", "a batch norm with norm_epsilon=1e-05"),
        (model(norm="layer", norm_epsilon=1e-6), "layer_norm", "a layer norm with norm_epsilon=1e-05"),
        (model(gelu="erf"), "end", "residual blocks that end in half_glu1 or half_glu2 after gelu='tanh'"),
        (
            model(gelu="erf", activation="full_glu"),
            "full_end",
            "residual blocks that end in full_glu after gelu='tanh'",
        ),
        (model(activation="gelu"), "gate", "residual blocks that end in a gate"),
        (model(residual=False), "gate", "residual blocks that end in a gate"),
        (model(activation="full_glu"), "end", "residual blocks that end in half_glu1 or half_glu2 after gelu='tanh'"),
        (model(), "layer_norm", "a layer norm with norm_epsilon=1e-05"),
        (model(), "full_end", "residual blocks that end in full_glu after gelu='tanh'"),
        (model(), "embedding", "encoder='embedding'"),
    ],
)
def test_part_that_the_model_has_not_is_refused(each, name, need, triton):
    with pytest.raises(ValueError, match=f"^fused: expected .*, got '{name}', which needs {need};"):
        learner(each, fused=[name])


def test_part_in_other_activations_is_refused(triton):
    with pytest.raises(ValueError, match=r"'norm', which needs float32 or bfloat16 activations, not float16;"):
        learner(model(), fused=["norm"], activations="float16")


def test_unknown_part_is_refused(triton):
    with pytest.raises(ValueError, match=r"^fused: expected one of 'chunks', .*, got 'gates'$"):
        learner(model(), fused=["gates"])


def test_unknown_kernel_of_a_layer_is_refused():
    layer = be.S5(4, 8, init="legs")
    with pytest.raises(ValueError, match=r"^fused: expected one of 'chunks', .*, got 'chunk'$"):
        be.apply(layer.description, layer.arrays(), torch.zeros(2, 5, 4), fused=["chunk"])


def test_tiles_by_themselves_are_refused(triton):
    with pytest.raises(ValueError, match=r"'tiles', which needs 'chunks' or 'states' beside it;"):
        fused.parts(model(), torch.zeros(0), ["tiles"])


def test_what_a_learner_compiles_rounds_alike_in_every_process(monkeypatch):
    """Sums whose kernels are chosen by timing them would not, and a resumed run would go on by other digits."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options["options"]) or function)
    learner(model(), compiled=True)
    assert asked == [{"deterministic": True}] * 5


def test_gelu_and_its_slope_are_those_of_core():
    y = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    for found, expected in zip(*((f(y), *torch.autograd.grad(f(y).sum(), y)) for f in (fused.gelu, gelu)), strict=True):
        assert_close(found, expected, rtol=0, atol=1e-14)
