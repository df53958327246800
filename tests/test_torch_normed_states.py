"""S5's chunks of one sample behind a batch norm, as one operator, through Triton's interpreter."""

from __future__ import annotations

import dataclasses

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
import ptd_torch.normed_states as operators
from ptd import sequences
from ptd.model import SequenceModel, Training, batch_norm, moments
from ptd.optimization import Optimizer
from ptd_torch import backend, kernels, states
from ptd_torch.norm import Normed, batch_normalized
from ptd_torch.program import Program
from ptd_torch.ranks import ALONE, Ranks

pytestmark = interpreter.needed

H, M, EPS = 64, 5, 2.0**-23
# Lengths that do not lie side by side, as a column of a table.
COLUMN = torch.tensor([[21, 1], [0, 1], [9, 1]])[:, 0]
LENGTHS = pytest.mark.parametrize("lengths", [None, COLUMN], ids=["whole", "lengths"])


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Products are the library's, as where there are many features; tiles are small."""
    from ptd_torch.triton import states as triton_states

    monkeypatch.setattr(states, "NARROW", {})
    monkeypatch.setattr(triton_states, "ROWS", 4)


def draws(*shapes):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=rng) for shape in shapes]


def inputs():
    """x, which is far from zero, scale, bias, a, into, out, skip; and upstream."""
    x, scale, bias, a, into, out, skip, upstream = draws(
        (3, 21, H), (H,), (H,), (2, M), (2 * M, H), (H, 4 * M), (H,), (3, 21, H)
    )
    return [x + 3, scale, bias, (0.6 * a).clamp(-0.6, 0.6), into / H**0.5, out / M**0.5, skip], upstream


def run(norm, leaves, upstream, lengths, known):
    """Output and gradients of the states form of norm(x, scale, bias), masked as a layer does it."""
    x, scale, bias, a, into, out, skip = (v.detach().clone().requires_grad_() for v in leaves)
    u = sequences.mask(norm(x, scale, bias), lengths)
    normed = None if known is None else Normed(x, scale, bias, known, lengths)
    Lambda_bar = ptd.arrays.from_planes(a)
    y = sequences.mask(operators.mixing_states(u, Lambda_bar, into, out, skip, normed=normed), lengths)
    return [y.detach(), *torch.autograd.grad(y, (x, scale, bias, a, into, out, skip), upstream.to(y.dtype))]


@LENGTHS
def test_output_and_gradients_are_those_of_the_parts(lengths):
    leaves, upstream = inputs()
    known = torch.stack(moments(leaves[0].double(), lengths)).float()
    found = run(lambda *v: batch_normalized(*v, known, lengths), leaves, upstream, lengths, known)
    exact = run(lambda x, *v: batch_norm(x, lengths, *v)[0], [v.double() for v in leaves], upstream, lengths, None)
    for one, expected in zip(found, exact, strict=True):
        assert_close(one.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def test_pairs_that_do_not_lie_side_by_side_have_the_gradients_of_the_parts():
    (x, *leaves), upstream = inputs()
    x, upstream = (v[:2, :20].reshape(2, 2, 10, H).mT.contiguous().mT for v in (x, upstream))
    lengths = torch.tensor([[10, 3], [0, 7]])
    known = torch.stack(moments(x.double(), lengths)).float()
    found = run(lambda *v: batch_normalized(*v, known, lengths), [x, *leaves], upstream, lengths, known)
    wide = [v.double() for v in (x, *leaves)]
    exact = run(lambda x, *v: batch_norm(x, lengths, *v)[0], wide, upstream.double(), lengths, None)
    for one, expected in zip(found, exact, strict=True):
        assert_close(one.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def test_a_feature_of_scale_zero_has_its_gradients():
    leaves, upstream = inputs()
    leaves[1][::2] = 0.0
    known = torch.stack(moments(leaves[0].double(), None)).float()
    found = run(lambda *v: batch_normalized(*v, known, None), leaves, upstream, None, known)
    exact = run(lambda x, *v: batch_norm(x, None, *v)[0], [v.double() for v in leaves], upstream, None, None)
    assert_close(found[2].double(), exact[2], rtol=0, atol=3e-6 * float(exact[2].abs().max()))


def test_narrow_activations_lose_no_more_than_their_rounding():
    leaves, upstream = inputs()
    narrow = [v if k else v.bfloat16() for k, v in enumerate(leaves)]
    known = torch.stack(moments(narrow[0].double(), None)).float()
    found = run(lambda *v: batch_normalized(*v, known, None), narrow, upstream, None, known)
    exact = run(lambda x, *v: batch_norm(x, None, *v)[0], [v.double() for v in narrow], upstream, None, None)
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    for one, expected in zip(found, exact, strict=True):
        assert float((one.double() - expected).norm()) < 0.02 * float(expected.norm())


@pytest.mark.parametrize("prenorm", [True, False])
def test_training_steps_by_it_are_those_of_array_code(prenorm, monkeypatch):
    form, called = operators.normed_states_form, []
    monkeypatch.setattr(operators, "normed_states_form", lambda *v: called.append(len(v)) or form(*v))
    layer = ptd.S5(H, 4, bidirectional=True)
    model = SequenceModel(layer, 2, 1, 3, norm="batch", norm_momentum=0.5, prenorm=prenorm)
    leaves = model.initialize(np.random.default_rng(0), init="legs")
    (u,), targets, lengths = draws((3, 8, 1)), torch.tensor([0, 2, 1]), torch.tensor([8, 3, 6])
    one = dataclasses.replace(kernels.KERNELS["cpu"], chunk_length=lambda layer, L: 1)
    monkeypatch.setitem(kernels.KERNELS, "cpu", one)
    losses = {}
    for parts in ((), ("norm", "states", "tiles")):
        learner = backend.learner(model, leaves, Optimizer(lr=0.01, total_steps=10), 0, fused=parts)
        losses[parts] = [float(learner.step(u, targets, lengths)) for _ in range(4)]
        assert bool(called) == (prenorm and bool(parts))
    plain, own = losses.values()
    assert plain[0] - plain[-1] > 0.01
    assert_close(own, plain, rtol=1e-4, atol=0)


class Beside(Ranks):
    """This process, and another that adds what it has to a sum."""

    def __init__(self, other: torch.Tensor):
        self.rank, self.size, self._other = 0, 2, other

    def total(self, x):
        return x.add_(self._other)


def test_gradient_of_the_norm_is_that_of_the_rows_of_all_processes():
    """Rows of two and their lengths, 11 samples here and 13 there, against all in one."""
    x, u, dy, held = draws((4, 8, H), (4, 8, H), (4, 8, H), (4, 8, 1, 2, M))
    scale, bias, skip, a, into, out, found = draws((H,), (H,), (H,), (2, M), (2 * M, H), (H, 2 * M), (2, H))
    how, lengths = (scale, bias, found.abs() + 1), torch.tensor([8, 3, 6, 7])

    def means(rows):
        own = (v[rows] for v in (dy, held, u, x))
        return operators.normed_states_form_adjoint(*own, *how, lengths[rows], a / 2, into, out, skip, True)[-1][3:5]

    here, there = slice(0, 2), slice(2, 4)
    other = torch.cat([13 * means(there).reshape(-1), torch.tensor([13.0])])
    expected = means(slice(0, 4))
    with Beside(other).current():
        assert_close(means(here), expected, rtol=1e-4, atol=1e-4)


def test_layer_whose_input_has_noise_too_does_not_take_over_the_gradient_of_the_norm(monkeypatch):
    """What skip's gradient is a sum of is then more than the norm."""
    monkeypatch.setattr(operators, "normed_states_form", None)
    one = dataclasses.replace(kernels.KERNELS["cpu"], chunk_length=lambda layer, L: 1)
    monkeypatch.setitem(kernels.KERNELS, "cpu", one)
    model = SequenceModel(ptd.S5(H, 4), 1, 1, 3, norm="batch")
    leaves = model.initialize(np.random.default_rng(0), init="legs")
    leaves = {name: torch.tensor(value, dtype=torch.float32, requires_grad=True) for name, value in leaves.items()}
    u, noise, targets = *draws((2, 4, 1), (2, 4, H)), torch.tensor([0, 2])
    found = {}
    for parts in ((), ("norm", "states", "tiles")):
        whole = Program(backend, model, None, parts, lambda function: function)
        call = {"training": Training(None), "layer_noise": [noise], "lengths": None}
        loss, _ = whole(leaves, u, torch.zeros(1, 1, 4), targets, ALONE.part(2), **call)
        found[parts] = torch.autograd.grad(loss, leaves["blocks.0.layer.D"])[0]
    plain, own = found.values()
    assert_close(own, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_operators_pass_torchs_own_checks():
    leaves, upstream = inputs()
    x, scale, bias, a, into, out, skip = (v.requires_grad_() for v in leaves)
    known = torch.stack(moments(x.detach(), None))
    arguments = (upstream, x, scale, bias, known, COLUMN, a, into, out, skip, True)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        operators.normed_states_form,
        arguments,
        test_utils=(*checks, "test_autograd_registration", "test_aot_dispatch_static"),
    )
    y, found = operators.normed_states_form(*arguments)
    torch.library.opcheck(
        operators.normed_states_form_adjoint, (y.detach(), found.detach(), *arguments), test_utils=checks
    )
