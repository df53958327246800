"""Layer norm as an operator against core's array code, through Triton's interpreter."""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd.model import Training, normalized
from ptd_torch import backend
from ptd_torch.layer_norm import layer_normalized
from ptd_torch.program import Program
from ptd_torch.ranks import ALONE

pytestmark = interpreter.needed


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles a program of the gradient, the last of them ragged."""
    from ptd_torch.triton import layer_norm as kernels

    monkeypatch.setattr(kernels, "FORWARD", kernels.Tile(elements=1024, each=8, programs=None, stages=1))
    monkeypatch.setattr(kernels, "BACKWARD", kernels.Tile(elements=1024, each=8, programs=3, stages=2))


def draws(H: int) -> list[torch.Tensor]:
    """x far from zero mean, the gradients of both outputs, scale with a zero, and bias."""
    rng = torch.Generator().manual_seed(0)
    x, dy, dturned, scale, bias = (torch.randn(*s, generator=rng) for s in [(3, 25, H)] * 3 + [(H,)] * 2)
    scale[1] = 0.0
    return [3 * x + 5, dy, dturned, scale, bias]


@pytest.mark.parametrize("given", ["y", "turned", "both"])
@pytest.mark.parametrize("H", [64, 192])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_outputs_and_gradients_equal_cores_in_double_precision(H, dtype, rounding, given):
    x, dy, dturned, scale, bias = draws(H)
    x, dy, dturned = (v.to(dtype) for v in (x, dy, dturned))

    leaves = [v.double().requires_grad_() for v in (x, scale, bias)]
    wide = leaves[0]
    exact = normalized(wide, wide.mean(-1, keepdim=True), wide.var(-1, keepdim=True, correction=0), *leaves[1:])
    upstream = (dy.double() if given != "turned" else 0) + (dturned.double() if given != "y" else 0)
    expected = [exact.detach(), exact.detach(), *torch.autograd.grad(exact, leaves, upstream)]

    leaves = [v.clone().requires_grad_() for v in (x, scale, bias)]
    y, turned, _ = layer_normalized(*leaves, True)
    outputs = {"y": [y], "turned": [turned], "both": [y, turned]}[given]
    gradients = {"y": dy, "turned": dturned.movedim(-1, 0).contiguous()}
    given = [gradients["y" if out is y else "turned"] for out in outputs]
    found = [y.detach(), turned.detach().movedim(0, -1), *torch.autograd.grad(outputs, leaves, given)]
    for value, exact in zip(found, expected, strict=True):
        assert_close(value.double(), exact, rtol=0, atol=4 * rounding * float(exact.abs().max()))


def test_one_output_is_all_unless_two_are_wanted():
    x, dy, _, scale, bias = draws(64)
    leaves = [v.requires_grad_() for v in (x, scale, bias)]
    y, turned, _ = layer_normalized(*leaves, False)
    assert turned.shape == (0,)
    both, _, _ = layer_normalized(*leaves, True)
    alone = torch.autograd.grad(both, leaves, dy)
    beside_none = torch.autograd.grad([y, turned], leaves, [dy, torch.zeros(0)])
    assert torch.equal(y, both)
    assert all(torch.equal(*pair) for pair in zip(alone, beside_none, strict=True))


def test_arguments_may_lie_in_memory_in_any_order():
    x, dy, dturned, scale, bias = draws(192)
    x, dy, dturned = (v[..., ::3] for v in (x, dy, dturned))
    wide = torch.stack([scale[:64], bias[:64]], dim=1)
    found = []
    for given in ([x, *wide.unbind(1)], [v.clone(memory_format=torch.contiguous_format) for v in (x, *wide.unbind(1))]):
        leaves = [v.requires_grad_() for v in given]
        y, turned, _ = layer_normalized(*leaves, True)
        found.append([y, turned, *torch.autograd.grad((y, turned), leaves, (dy, dturned.movedim(-1, 0)))])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_nothing_is_normed_of_no_rows():
    x, scale, bias = torch.zeros(0, 5, 64).requires_grad_(), *(torch.ones(64).requires_grad_() for _ in range(2))
    y, turned, _ = layer_normalized(x, scale, bias, True)
    assert y.shape == x.shape
    assert turned.shape == (64, 0, 5)
    for grad, leaf in zip(torch.autograd.grad(y.sum(), (x, scale, bias)), (x, scale, bias), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_operator_passes_torchs_own_checks():
    x, _, _, scale, bias = (v.requires_grad_() for v in draws(64))
    torch.library.opcheck(layer_normalized, (x, scale, bias, True))


def test_a_training_step_turns_no_signal(monkeypatch):
    """Blocks read and write what layers do; what the encoder writes is turned by array code."""
    turns = interpreter.counted_turns(monkeypatch)
    interpreter.matrices_by_array_code(monkeypatch)
    interpreter.chunks_of_zeros(monkeypatch)
    model = ptd.SequenceModel(ptd.S4D(64, 4), 2, 1, 2, norm="layer", prenorm=False, activation="full_glu")
    optimizer = ptd.optimization.Optimizer(lr=1e-3, total_steps=10)
    params, u = model.initialize(np.random.default_rng(0)), np.ones((2, 16, 1), np.float32)

    def called(names: tuple[str, ...]) -> list[str]:
        turns.clear()
        backend.learner(model, params, optimizer, 0, compiled=False, fused=names).step(u, np.array([0, 1]))
        return sorted(turns)

    assert called(("full_end",)) == ["from_features"] * 2 + ["to_features"] * 2
    assert called(("full_end", "layer_norm")) == []


def test_layer_whose_input_has_noise_too_reads_both():
    """And not what was written with features first, which has none."""
    model = ptd.SequenceModel(ptd.S4D(64, 4), 1, 1, 3, norm="layer", prenorm=False)
    leaves = model.initialize(np.random.default_rng(0))
    leaves = {name: torch.tensor(value, dtype=torch.float32) for name, value in leaves.items()}
    u, noise = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((2, 16, 1), (2, 16, 64)))
    losses = []
    for parts in ((), ("layer_norm",)):
        whole = Program(backend, model, None, parts, lambda function: function)
        call = {"training": Training(None), "layer_noise": [noise], "lengths": None}
        losses.append(whole(leaves, u, torch.zeros(1, 1, 4), torch.tensor([0, 2]), ALONE.part(2), **call)[0])
    assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
