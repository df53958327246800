"""Batch norm of known moments, its factor and gradient as operators, through Triton's interpreter."""

from __future__ import annotations

import dataclasses
import functools

import interpreter
import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch.testing import assert_close

import ptd
from ptd.model import SequenceModel, Training, batch_norm, moments
from ptd_torch import backend, fused, program, training
from ptd_torch.dropout import Dropout
from ptd_torch.norm import batch_normalized, column_moments, norm_adjoint, norm_factor

pytestmark = interpreter.needed

H, EPS = 64, 2.0**-23
# Lengths that do not lie side by side, as a column of a table.
COLUMN = torch.tensor([[21, 1], [0, 1], [9, 1]])[:, 0]
LENGTHS = pytest.mark.parametrize("lengths", [None, COLUMN], ids=["whole", "lengths"])
TRAINED = SequenceModel(ptd.S5(H, 4, bidirectional=False), 2, 1, 2, norm="batch", norm_momentum=0.5)
AFTER = dataclasses.replace(TRAINED, prenorm=False)


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


@pytest.mark.parametrize("each", [TRAINED, AFTER], ids=["before", "after"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_chosen_by_default(each, dtype):
    assert "norm" in fused.parts(each, torch.zeros(1, 1, H, dtype=dtype))


def block_after(each, how, dtypes, lengths):
    """Output, updated statistics and gradients of a block around an identity, whose norm stands after it.

    how: the parts that run as kernels; dtypes: of activations and of leaves.
    """
    shapes = {name.removeprefix("blocks.0."): s for name, s in each.shapes().items() if name.startswith("blocks.0.")}
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("layer.")}
    x, upstream, *values = draws((3, 21, H), (3, 21, H), *shapes.values())
    narrow, wide = dtypes
    leaves = {name: value.to(wide) / len(value) ** 0.5 for name, value in zip(shapes, values, strict=True)}
    trained = {"x": (x + 2).to(narrow)} | {n: v for n, v in leaves.items() if n not in ("norm.mean", "norm.var")}
    trained = {name: value.requires_grad_() for name, value in trained.items()}
    training = Training(Dropout(torch.tensor(12345)))
    passes = fused.Passes(each, training.dropout, None, lengths).of(how)
    call = {"lengths": lengths, "training": training, "noise": None, "run": lambda layer, leaves, u, **_: u}
    y, updated = each.block(0, leaves | trained, trained["x"], **call, **passes)
    grads = torch.autograd.grad(y, list(trained.values()), upstream.to(narrow))
    values = {"y": y} | updated | {f"by {name}": grad for name, grad in zip(trained, grads, strict=True)}
    return {name: value.detach() for name, value in values.items()}


#: The parts, how often moments are looked for, and the model.
BLOCKS = [
    pytest.param({"norm", "gate"}, 0, {"activation": "full_glu", "dropout": 0.3}, id="full_glu"),
    pytest.param({"norm", "gate"}, 0, {"activation": "half_glu1"}, id="half_glu1"),
    pytest.param({"norm", "end"}, 0, {"activation": "half_glu2", "dropout": 0.3, "tie_dropout": True}, id="half_glu2"),
    pytest.param({"norm"}, 1, {"activation": "full_glu"}, id="norm alone"),
    pytest.param({"norm"}, 1, {"activation": "gelu"}, id="gelu"),
    pytest.param({"norm", "gate"}, 1, {"activation": "half_glu1", "residual": False}, id="no sum"),
]


@LENGTHS
@pytest.mark.parametrize(("how", "passes", "options"), BLOCKS)
def test_norm_after_a_block_takes_the_moments_of_its_sum(how, passes, options, lengths, monkeypatch):
    """Else of a pass over what the block gives."""
    seen = []
    monkeypatch.setattr(fused, "column_moments", lambda *of: seen.append(of) or column_moments(*of))
    each = dataclasses.replace(AFTER, **options)
    found = block_after(each, how, (torch.float32, torch.float32), lengths)
    assert len(seen) == passes
    for name, expected in block_after(each, set(), (torch.float64, torch.float64), lengths).items():
        error = 1e-5 * float(expected.abs().max())
        assert_close(found[name].double(), expected, rtol=0, atol=error, msg=lambda text, name=name: f"{name}: {text}")


@LENGTHS
@pytest.mark.parametrize(("how", "passes", "options"), BLOCKS[:3])
def test_norm_after_a_block_in_bfloat16_is_as_near_as_its_rounding(how, passes, options, lengths):
    each = dataclasses.replace(AFTER, **options)
    found = block_after(each, how, (torch.bfloat16, torch.float32), lengths)
    for name, expected in block_after(each, set(), (torch.float64, torch.float64), lengths).items():
        error = 0.03 * float(expected.abs().max())
        assert_close(found[name].double(), expected, rtol=0, atol=error, msg=lambda text, name=name: f"{name}: {text}")


def statistics(each, names, lengths):
    """Those of all blocks after one step, which has moved them."""
    params = each.initialize(np.random.default_rng(0), init="legs")
    learner = backend.learner(each, params, ptd.Optimizer(lr=1e-3, total_steps=10), 0, compiled=False, fused=names)
    u = np.random.default_rng(1).standard_normal((3, 21, 1)).astype(np.float32)
    learner.step(u, np.array([0, 1, 1]), None if lengths is None else lengths.numpy())
    updated = {name: value for name, value in learner.parameters().items() if name.endswith((".mean", ".var"))}
    assert len(updated) == (6 if each.final_norm else 4)
    assert not any(np.array_equal(value, params[name]) for name, value in updated.items())
    return updated


@pytest.fixture
def moments_seen(monkeypatch):
    """What moments are looked for in, and what each block is given."""
    seen, given = [], []
    monkeypatch.setattr(program, "Passes", lambda *of: given.append(of[2]) or fused.Passes(*of))
    monkeypatch.setattr(fused, "column_moments", lambda *of: seen.append(of) or column_moments(*of))
    return seen, given


@LENGTHS
@pytest.mark.parametrize(("names", "passes"), [(("norm", "gate"), 1), (("norm",), 2)], ids=["sum", "norm alone"])
def test_every_block_is_given_moments_which_only_the_sum_before_it_finds(names, passes, lengths, moments_seen):
    """Given to all or to none: a block with them and one without are compiled each."""
    seen, given = moments_seen
    plain, chained = (statistics(TRAINED, each, lengths) for each in ((), names))
    assert len(seen) == passes
    assert [known is None for known in given] == [True] * 2 + [False] * 2
    for name, expected in plain.items():
        np.testing.assert_allclose(chained[name], expected, rtol=1e-4, atol=1e-5)


@LENGTHS
@pytest.mark.parametrize(("names", "passes"), [(("norm", "gate"), 1), (("norm",), 3)], ids=["sum", "norm alone"])
def test_the_final_norm_takes_the_moments_that_the_last_block_has_found(names, passes, lengths, moments_seen):
    each = dataclasses.replace(TRAINED, final_norm=True)
    plain, kernels = (statistics(each, chosen, lengths) for chosen in ((), names))
    assert len(moments_seen[0]) == passes
    for name, expected in plain.items():
        np.testing.assert_allclose(kernels[name], expected, rtol=1e-4, atol=1e-5)


@LENGTHS
@pytest.mark.parametrize(("names", "passes"), [(("norm", "gate"), 0), (("norm",), 2)], ids=["sum", "norm alone"])
def test_no_moments_go_from_block_to_block_where_norms_stand_after(names, passes, lengths, moments_seen):
    seen, given = moments_seen
    plain, kernels = (statistics(AFTER, each, lengths) for each in ((), names))
    assert len(seen) == passes
    assert given == [None] * 4
    for name, expected in plain.items():
        np.testing.assert_allclose(kernels[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of a sigmoid that is 0 then
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch 2.13's compiler of its own
@pytest.mark.parametrize("each", [TRAINED, AFTER], ids=["before", "after"])
def test_compiler_keeps_no_activation_for_the_gradient_at_twice_its_size(each, monkeypatch):
    """As its own division into forward and backward pass has it, with nothing compiled after that."""
    from torch._inductor.compile_fx import compile_fx

    torch.compiler.reset()  # compilations are counted by code, which all learners of this process share
    divided = functools.partial(compile_fx, inner_compile=lambda graph, *_, **__: make_boxed_func(graph.forward))
    monkeypatch.setattr(training, "compile_once", lambda f, **_: torch.compile(f, backend=divided, fullgraph=True))
    each = dataclasses.replace(each, activation="full_glu", n_layers=1)
    params = each.initialize(np.random.default_rng(0), init="legs")
    how = {"activations": "bfloat16", "compiled": True, "fused": ("chunks", "norm", "gate")}
    learner = backend.learner(each, params, ptd.Optimizer(lr=1e-3, total_steps=10), 0, **how)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        learner.step(np.ones((3, 21, 1), np.float32), np.array([0, 1, 1]), COLUMN.numpy())
    dtypes = {v.dtype for v in kept if v.shape == (3, 21, H)}
    assert dtypes == {torch.bfloat16}
