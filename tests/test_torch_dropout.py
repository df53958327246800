"""Dropout of the torch backend: masks by counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ptd
from ptd_torch import backend
from ptd_torch.dropout import Dropout, derived

KEY = torch.tensor(12345)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_share_of_zeros_is_the_rate_and_the_mean_stays(rate):
    """Five deviations of a binomial share of n numbers."""
    n = 200_000
    y = Dropout(KEY)(torch.ones(4, n // 40, 10), rate, False).numpy()
    assert abs(np.mean(y == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / (1 - rate)], rtol=1e-6)


def test_calls_keys_and_neighbours_have_masks_of_their_own():
    drop, x = Dropout(KEY), torch.ones(2, 5000, 10)
    first, second, other = (d(x, 0.5, False) != 0 for d in (drop, drop, Dropout(derived(KEY, 1))))
    pairs = [(first, second), (first, other), (first[:, 1:], first[:, :-1]), (first[..., 1:], first[..., :-1])]
    for a, b in pairs:
        assert abs(float((a == b).double().mean()) - 0.5) < 5 * 0.5 / np.sqrt(a.numel())


def test_a_mask_over_time_is_one_per_sequence_and_feature():
    y = Dropout(KEY)(torch.ones(3, 50, 40), 0.5, True)
    assert (y == y[:, :1]).all()
    assert 0 < float((y[:, 0] == 0).double().mean()) < 1
    assert (y[0, 0] != y[1, 0]).any()


@pytest.mark.parametrize("seed", [1, 2**12, 2**20, 2**31])
def test_seeds_train_with_masks_of_their_own(seed):
    model = ptd.SequenceModel(ptd.S5(8, 4), 1, 1, 2, dropout=0.5)
    params = model.initialize(np.random.default_rng(0))
    optimizer = ptd.Optimizer(lr=1e-3, ssm_lr=1e-3, weight_decay=0.0, total_steps=10)
    u = np.random.default_rng(1).standard_normal((3, 12, 1)).astype(np.float32)

    def first_loss(seed: int) -> float:
        return float(backend.on("cpu").learner(model, params, optimizer, seed).step(u, np.array([0, 1, 1])))

    assert first_loss(seed) != first_loss(0)
    assert first_loss(seed) == first_loss(seed)
