"""The fused end of a block against core's array code, through Triton's interpreter (nox -s triton-interpreter)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd.model import SequenceModel, Training, moments
from ptd_torch import backend, gate, training
from ptd_torch.dropout import Dropout
from ptd_torch.scan import kernel_path

pytestmark = pytest.mark.skipif(
    kernel_path(torch.device("cpu")) == "torch", reason="needs TRITON_INTERPRET=1 and Triton: nox -s triton-interpreter"
)

B, L = 3, 45


def model(H: int = 64, **options: object) -> SequenceModel:
    base = {"norm": "batch", "activation": "half_glu1", "n_layers": 1, "d_input": 1, "d_output": 2}
    return SequenceModel(ptd.S5(H, 4), **(base | options))


def draws(H: int, seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng) for shape in shapes]


def ends(each: SequenceModel, dtype: torch.dtype, lengths: torch.Tensor | None) -> list[list[torch.Tensor]]:
    """Output, moments and gradients of a block's end, by array code and by the operator."""
    H = each.layer.d_model
    y, x, weight, bias, upstream = draws(H, 0, (B, L, H), (B, L, H), (H, H), (H,), (B, L, H))
    y, x, upstream = (v.to(dtype) for v in (y, x, upstream))
    weight = weight / H**0.5
    results = []
    for fused in (False, True):
        leaves = [v.clone().requires_grad_() for v in (y, x, weight, bias)]
        named = {"gate.weight": leaves[2], "gate.bias": leaves[3]}
        training = Training(Dropout(torch.tensor(12345)))
        if fused:
            finish = gate.Finish(lengths, True)
            out = finish(each, named, *leaves[:2], training)
            found = finish.moments
        else:
            out = each.finish(named, *leaves[:2], training)
            found = moments(out.detach().float(), lengths)
        grads = torch.autograd.grad(out, leaves, upstream)
        results.append([out.detach(), *found, *grads])
    return results


CASES = [
    model(),
    model(activation="half_glu2"),
    model(192, dropout=0.3),
    model(192, dropout=0.3, tie_dropout=True, activation="half_glu2"),
    model(128, dropout=0.1),
]


@pytest.mark.parametrize("each", CASES, ids=lambda m: f"{m.activation}-{m.layer.d_model}-{m.dropout}-{m.tie_dropout}")
@pytest.mark.parametrize("lengths", [None, torch.tensor([45, 0, 17])], ids=["whole", "lengths"])
def test_fused_end_equals_array_code(each, lengths):
    plain, fused = ends(each, torch.float32, lengths)
    for expected, found in zip(plain, fused, strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("each", CASES[:3], ids=lambda m: f"{m.activation}-{m.layer.d_model}")
def test_fused_end_in_bfloat16_is_as_near_as_its_rounding(each):
    exact, _ = ends(each, torch.float32, None)
    _, fused = ends(each, torch.bfloat16, None)
    for expected, found in zip(exact, fused, strict=True):
        assert_close(found.float(), expected, rtol=0, atol=0.03 * float(expected.abs().max()))


def test_operator_passes_torchs_own_checks():
    y, x, weight, bias = (v.requires_grad_() for v in draws(64, 0, (2, 20, 64), (2, 20, 64), (64, 64), (64,)))
    torch.library.opcheck(
        gate.gated_sum,
        (y, x, weight, bias, torch.tensor([3, 4]), None, 0.5, False, True, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_moments_far_from_zero_do_not_cancel():
    each = model()
    y, x, weight, bias = draws(64, 0, (B, L, 64), (B, L, 64), (64, 64), (64,))
    finish = gate.Finish(None, True)
    out = finish(each, {"gate.weight": weight, "gate.bias": bias}, y, x + 3000.0, Training(Dropout(torch.tensor(1))))
    assert_close(finish.moments[1], moments(out.double(), None)[1].float(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("lengths", [None, torch.tensor([45, 0, 17])], ids=["whole", "lengths"])
def test_known_moments_have_the_gradient_of_computed_ones(lengths):
    (x,) = draws(8, 0, (B, L, 8))
    x, weights = x.double().requires_grad_(), torch.arange(1.0, 9.0).double()

    def gradient(mean, var):
        return torch.autograd.grad((mean * weights + var.sqrt() * weights**2).sum(), x)[0]

    computed = moments(x, lengths)
    known = gate.known_moments(x, torch.stack(computed).detach(), lengths)
    assert_close(gradient(*known), gradient(*computed))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of a sigmoid that is 0 then
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch 2.13's compiler of its own
@pytest.mark.parametrize("compiled", [False, True])
def test_learner_trains_as_without_the_fused_end(compiled, monkeypatch):
    each = model(n_layers=2, dropout=0.2, norm_momentum=0.5)
    params = each.initialize(np.random.default_rng(0))
    u = np.random.default_rng(1).standard_normal((3, 12, 1)).astype(np.float32)
    lengths = np.array([12, 5, 1])
    optimizer = ptd.optimization.Optimizer(lr=1e-3, ssm_lr=1e-3, weight_decay=0.0, total_steps=10)

    def train(fused: bool) -> dict[str, np.ndarray]:
        with monkeypatch.context() as patch:
            patch.setattr(training, "compile_once", lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))
            if not fused:
                patch.setattr(gate, "fits", lambda model, x: False)
            learner = backend.learner(each, params, optimizer, 0, compiled=compiled and fused)
            learner.step(u, np.array([0, 1, 1]), lengths)
            return learner.snapshot()

    plain, fused = train(False), train(True)
    for name, expected in plain.items():
        if name.startswith(("moments.", "leaves.")):
            assert_close(torch.tensor(fused[name]), torch.tensor(expected), rtol=2e-3, atol=2e-5, msg=name)
