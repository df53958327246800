"""Batch norm of known moments, its factor and gradient as operators, through Triton's interpreter."""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd.model import SequenceModel, batch_norm, moments
from ptd_torch import backend, fused, program
from ptd_torch.norm import batch_normalized, column_moments, norm_adjoint, norm_factor

pytestmark = interpreter.needed

H, EPS = 64, 2.0**-23
# Lengths that do not lie side by side, as a column of a table.
COLUMN = torch.tensor([[21, 1], [0, 1], [9, 1]])[:, 0]
LENGTHS = pytest.mark.parametrize("lengths", [None, COLUMN], ids=["whole", "lengths"])
TRAINED = SequenceModel(ptd.S5(H, 4, bidirectional=False), 2, 1, 2, norm="batch", norm_momentum=0.5)


def draws(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=rng) for shape in shapes]


def run(norm, leaves, upstream):
    """Output and gradients by x, scale and bias."""
    leaves = [v.detach().clone().requires_grad_() for v in leaves]
    y = norm(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def both(x, scale, bias, upstream, lengths):
    """What the operators give, and array code in double precision."""
    known = torch.stack(moments(x.double(), lengths)).float()
    found = run(lambda *v: batch_normalized(*v, known, lengths), (x, scale, bias), upstream)
    wide = [v.double() for v in (x, scale, bias)]
    return found, run(lambda x, *v: batch_norm(x, lengths, *v)[0], wide, upstream.double())


@LENGTHS
@pytest.mark.parametrize("ratio", [0.0, 30.0, 1000.0])
def test_error_is_that_of_the_mean_however_far_it_is_from_zero(ratio, lengths):
    x, upstream, scale, bias = draws((3, 21, H), (3, 21, H), (H,), (H,))
    x = x + ratio
    found, exact = both(x, scale, bias, upstream, lengths)
    a = scale.double() / x.double().std((0, 1))
    # The mean, as float32 has it, is off by up to EPS/2 |mean|; b x + c rounds terms of that size once more.
    error, size = EPS * (4 + ratio), upstream.abs()
    assert ((found[0] - exact[0]).abs() <= error * a.abs() + EPS * exact[0].abs()).all()
    assert ((found[1] - exact[1]).abs() <= error * a.abs() * size.max()).all()
    assert ((found[2] - exact[2]).abs() <= error * size.sum((0, 1))).all()
    assert ((found[3] - exact[3]).abs() <= 2 * EPS * size.sum((0, 1))).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3, 5)])
def test_few_rows_and_many_batch_axes(shape):
    x, upstream, scale, bias = draws((*shape, H), (*shape, H), (H,), (H,))
    for found, exact in zip(*both(x, scale, bias, upstream, None), strict=True):
        assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_sequences_of_no_valid_sample_share_no_moments():
    x, upstream, scale, bias = draws((2, 5, H), (2, 5, H), (H,), (H,))
    leaves = (x, scale, bias)
    known = torch.stack([torch.zeros(H), torch.ones(H)])
    _, dx, *_ = run(lambda *v: batch_normalized(*v, known, torch.zeros(2, dtype=torch.int64)), leaves, upstream)
    assert_close(dx, upstream * scale / (1 + 1e-5) ** 0.5)


def test_operators_pass_torchs_own_checks():
    x, scale, bias, known = draws((2, 5, H), (H,), (H,), (2, H))
    known = known.abs()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(norm_adjoint, (x, x, scale, known, COLUMN[:2]), test_utils=checks)
    leaves = [v.requires_grad_() for v in (x, scale, bias)]
    torch.library.opcheck(
        norm_factor,
        (*leaves, known, None),
        test_utils=(*checks, "test_autograd_registration", "test_aot_dispatch_static"),
    )


def test_norm_is_chosen_by_default():
    assert "norm" in fused.parts(TRAINED, torch.zeros(1, 1, H))
    assert "norm" in fused.parts(TRAINED, torch.zeros(1, 1, H, dtype=torch.bfloat16))


@LENGTHS
def test_moments_are_looked_for_once_and_handed_on_from_block_to_block(lengths, monkeypatch):
    seen = []
    monkeypatch.setattr(program, "column_moments", lambda *of: seen.append(of) or column_moments(*of))
    params = TRAINED.initialize(np.random.default_rng(0), init="legs")
    optimizer = ptd.Optimizer(lr=1e-3, total_steps=10)
    u = np.random.default_rng(1).standard_normal((3, 21, 1)).astype(np.float32)

    def statistics(names):
        learner = backend.learner(TRAINED, params, optimizer, 0, compiled=False, fused=names)
        learner.step(u, np.array([0, 1, 1]), None if lengths is None else lengths.numpy())
        return {name: value for name, value in learner.parameters().items() if name.endswith((".mean", ".var"))}

    plain, chained = statistics(()), statistics(("norm", "gate"))
    assert len(seen) == 1
    assert len(plain) == 4
    for name, expected in plain.items():
        assert not np.array_equal(expected, params[name])
        np.testing.assert_allclose(chained[name], expected, rtol=1e-4, atol=1e-5)
