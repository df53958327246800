"""Learners of two processes whose blocks run as kernels, through Triton's interpreter: ptd_torch.data_parallel."""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ptd
from ptd_torch import backend

pytestmark = interpreter.needed

L, PARTS = 9, ("norm", "chunks", "tiles", "end")


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of a sigmoid that is 0 then
def test_kernels_take_moments_and_masks_of_the_whole_batch():
    """Two steps by parts of 2 and 3 rows, of other lengths: losses, leaves and moments are those of one device."""
    own = {"norm": "batch", "activation": "half_glu1", "dropout": 0.3, "tie_dropout": False}
    model = ptd.SequenceModel(ptd.S5(64, 4), 2, d_input=1, d_output=2, **own)
    leaves, rng = model.initialize(np.random.default_rng(0), init="legs"), np.random.default_rng(1)
    batch = rng.standard_normal((5, L, 1)).astype(np.float32), np.array([0, 1, 1, 0, 1]), np.array([9, 2, 5, 9, 7])
    rule = ptd.Optimizer(lr=1e-2, total_steps=9)
    one, two = (backend.on("cpu").learner(model, leaves, rule, 0, fused=PARTS, devices=n) for n in (1, 2))
    losses = [[float(learner.step(*batch)) for _ in range(2)] for learner in (one, two)]
    assert_allclose(losses[1], losses[0], rtol=1e-5)
    for name, value in one.parameters().items():
        assert_allclose(two.parameters()[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
