"""What surrounds the blocks in a training step of the torch backend: keys, update, compiled encoder and decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ptd
from ptd.model import SequenceModel
from ptd_torch import backend, training
from ptd_torch.dropout import Dropout, derived
from ptd_torch.training import TorchLearner

OPTIMIZER = ptd.Optimizer(lr=1e-2, ssm_lr=1e-3, weight_decay=0.1, total_steps=9, warmup_steps=2)
TOKENS = {"encoder": "embedding", "d_input": 7}


def model(**options: object) -> SequenceModel:
    base = {"norm": "batch", "activation": "half_glu2", "n_layers": 1, "d_input": 2, "d_output": 3}
    return SequenceModel(ptd.S5(8, 4), **(base | options))


def learner(each: SequenceModel, **options: object) -> TorchLearner:
    params = each.initialize(np.random.default_rng(0))
    return TorchLearner(backend.on("cpu"), each, params, OPTIMIZER, 5, **options)


def test_keys_of_blocks_are_those_derived_one_by_one():
    _, keys = learner(model(dropout=0.1, n_layers=3))._clock_of(torch.tensor(7))
    key = derived(derived(torch.tensor(7), 0), 5)
    assert keys[:, 0].tolist() == [int(derived(key, (i + 1) * 0x27D4EB2F)) for i in range(3)]
    assert keys.stride() == (4, 1)


def test_model_without_dropout_asks_for_no_key(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Dropout, "key", refuse)
    u, targets = np.ones((2, 7, 2), np.float32), np.array([0, 2])
    assert np.isfinite(float(learner(model()).step(u, targets)))
    with pytest.raises(AssertionError):
        learner(model(dropout=0.1)).step(u, targets)


def test_update_is_adamw_with_a_count_for_each_leaf_bit_for_bit():
    own = learner(model())._adamw
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in own.trained.items()}
    groups = [
        {"params": [leaves[name] for name in names], "weight_decay": group.weight_decay}
        for group, names in own.groups.items()
    ]
    adamw = torch.optim.AdamW(groups, lr=torch.tensor(0.0), fused=True)
    for step in range(3):
        grads = {
            name: torch.randn(leaf.shape, generator=torch.Generator().manual_seed(step))
            for name, leaf in leaves.items()
        }
        rates = own.rates(own.steps)
        for group, rate in zip(adamw.param_groups, rates, strict=True):
            group["lr"] = rate
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        adamw.step()
        with torch.no_grad():
            own.update(grads, rates)
    for name, leaf in leaves.items():
        assert torch.equal(own.trained[name], leaf), name
        assert torch.equal(own.squares[name], adamw.state[leaf]["exp_avg_sq"]), name
    assert own.steps == 3


def compiled_but_for_blocks(function, **_):
    """Blocks are compiled in tests of their own, and take longest."""
    if function.__name__ == "_block_of":
        return function
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch 2.13's compiler of its own
@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.3, "tie_dropout": True}, TOKENS | {"pair": True, "final_norm": True}],
    ids=["features", "pairs of tokens"],
)
def test_learner_with_compiled_ends_trains_and_evaluates_as_the_plain_one(options, monkeypatch):
    monkeypatch.setattr(training, "compile_once", compiled_but_for_blocks)
    each, rng = model(**options), np.random.default_rng(0)
    shape = (4, 2, 5) if each.pair else (4, 5)
    u = rng.integers(0, 7, shape) if each.encoder == "embedding" else rng.random((*shape, each.d_input), np.float32)
    lengths = rng.integers(1, 5, shape[:-1])
    results = []
    for compiled in (False, True):
        one = learner(each, compiled=compiled)
        losses = [float(one.step(u, np.array([0, 1, 2, 0]), lengths)) for _ in range(2)]
        results.append([np.array(losses), one.outputs(u, lengths), *one.parameters().values()])
    for plain, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, plain, rtol=2e-3, atol=1e-4)
