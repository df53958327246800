"""Diagonal systems and their matrices over chunks as Triton kernels, against core, through Triton's interpreter."""

from __future__ import annotations

import dataclasses

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd import discretization
from ptd.arrays import as_planes, from_planes
from ptd_torch import backend, diagonal
from ptd_torch.kernels import KERNELS

pytestmark = interpreter.needed

PARTS = dataclasses.replace(KERNELS["cpu"], diagonal_chunks=None)
LAYERS = {
    "s4d both ways": ptd.S4D(3, 8, bidirectional=True),
    "s4d both ways without D": ptd.S4D(2, 6, bidirectional=True, skip=False),
    "s4d shared, 35 modes": ptd.S4D(2, 70, shared=True),
    "s4d, 17 modes that are no pairs": ptd.S4D(2, 17, conj_sym=False),
    "dss both ways": ptd.DSS(2, 5, bidirectional=True),
    "dss of one mode": ptd.DSS(2, 1, kernel_length=20),
}


@pytest.fixture
def calls(monkeypatch):
    """T of every call of the operator."""
    found: list[int] = []
    matrices = diagonal.matrices
    monkeypatch.setattr(diagonal, "matrices", lambda *args: found.append(args[-1]) or matrices(*args))
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def system(layer, params: dict[str, torch.Tensor], T: int, kernels) -> list[torch.Tensor]:
    """The matrices of a layer over chunks of T samples, decay as planes."""
    u = torch.zeros(1, T, layer.d_model, dtype=params["log_step"].dtype)
    found = layer.chunk_system(params, layer.signal(u, None, None, None, u.dtype), T, kernels)
    return [as_planes(found.decay), found.into, found.out, found.direct]


def parameters(layer) -> dict[str, torch.Tensor]:
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    return {name: backend.asarray(value, "float32") for name, value in leaves.items()}


def results(layer, T: int, dtype: torch.dtype, kernels) -> list[torch.Tensor]:
    """The matrices, and the gradients by every leaf of a sum of them."""
    params = {name: value.to(dtype).requires_grad_() for name, value in parameters(layer).items()}
    found = system(layer, params, T, kernels)
    loss = sum((value * draw(*value.shape, seed=7 + i)).sum() for i, value in enumerate(found))
    return [value.detach() for value in (*found, *torch.autograd.grad(loss, list(params.values())))]


@pytest.mark.parametrize("T", [1, 32])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_matrices_and_gradients_are_as_precise_as_the_parts(layer, T, calls):
    found = results(layer, T, torch.float32, KERNELS["cpu"])
    assert calls == [T]
    own, wide = (results(layer, T, dtype, PARTS) for dtype in (torch.float32, torch.float64))
    for value, narrow, exact in zip(found, own, wide, strict=True):
        # What the parts lose, chiefly a rounded step's phases, and the log2(T) roundings of a power and those of sums.
        lost = 4 * float((narrow - exact).abs().max()) + 16 * 2**-24 * float(exact.abs().max())
        assert_close(value.double(), exact, rtol=0, atol=lost)


def test_zero_order_hold_and_gradients_are_those_of_core_in_double_precision():
    """Steps from none to long, with z on both sides of the radius within which series are used."""
    steps = torch.tensor([0.0, 1e-7, 0.99e-5, 1.01e-5, 0.1, 1.0])
    direction = torch.polar(torch.ones(5), torch.linspace(1.6, 4.6, 5))
    modes = torch.stack([direction.real, direction.imag]).expand(6, 2, 5)
    upstream = [draw(6, 2, 5, seed=seed) for seed in (1, 2)]

    def run(zoh, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [value.to(dtype).requires_grad_() for value in (modes, steps)]
        found = zoh(*leaves)
        grads = torch.autograd.grad(found, leaves, [value.to(dtype) for value in upstream])
        return [value.detach() for value in (*found, *grads)]

    exact = run(
        lambda modes, steps: [as_planes(x) for x in discretization.zoh(from_planes(modes), steps[:, None])],
        torch.float64,
    )
    for value, wide in zip(run(diagonal.zoh, torch.float32), exact, strict=True):
        # Rounded once, row by row: gains and their gradients are as small as the step.
        largest = wide.abs().reshape(6, -1).amax(-1).reshape(6, *(1,) * (wide.ndim - 1))
        assert bool(((value.double() - wide).abs() <= 2**-24 * largest).all())


def test_a_mode_that_forgets_at_once_has_finite_gradients(calls):
    """Powers are products, so that Lambda_bar = 0 needs no logarithm and no division."""
    a, rows, C = torch.zeros(1, 2, 2), draw(1, 2, 2), draw(1, 2, 2, 2, seed=1)
    given = [value.requires_grad_() for value in (a, rows, C)]
    decay, _, out, direct = diagonal.matrices(*given, None, 4)
    assert decay.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
    assert_close(direct[0], torch.eye(4) * direct[0, 0, 0])
    by_a, *_ = torch.autograd.grad(out.sum(), given)
    # out begins with Re(C a) and -Im(C a), and ends so for the other direction: all else has a^2 in it.
    c = C.detach()[0].sum(0)
    assert_close(by_a[0], torch.stack([c[0] - c[1], -c[0] - c[1]]))


def test_what_the_kernels_do_not_take_is_left_to_core(calls):
    layer = LAYERS["s4d both ways"]
    params = parameters(layer)
    system(layer, params, 25, KERNELS["cpu"])
    system(layer, {name: value.double() for name, value in params.items()}, 16, KERNELS["cpu"])
    system(dataclasses.replace(layer, discretization="bilinear"), params, 16, KERNELS["cpu"])
    torch.func.grad(lambda D: system(layer, params | {"D": D}, 16, KERNELS["cpu"])[3].sum())(params["D"])
    assert calls == []
    system(layer, params, 16, KERNELS["cpu"])
    assert calls == [16]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch 2.13's forward mode
def test_tangents_pass_through(calls):
    layer, forward_ad = LAYERS["s4d both ways"], torch.autograd.forward_ad
    params = parameters(layer)
    with forward_ad.dual_level():
        D = forward_ad.make_dual(params["D"], torch.ones(3))
        slope = forward_ad.unpack_dual(system(layer, params | {"D": D}, 16, KERNELS["cpu"])[3]).tangent
    assert_close(slope, torch.eye(16).expand(3, 16, 16))
    assert calls == []


def test_zero_order_hold_passes_torchs_own_checks():
    given = (draw(2, 2, 3).requires_grad_(), draw(2, seed=1).abs().requires_grad_())
    torch.library.opcheck(torch.ops.ptd.zoh.default, given)


@pytest.mark.parametrize("skip", [False, True])
def test_matrices_pass_torchs_own_checks(skip):
    given = [0.5 * draw(2, 2, 3), draw(2, 2, 3, seed=1), draw(2, 2, 2, 3, seed=2), draw(2, seed=3) if skip else None]
    given = [None if value is None else value.requires_grad_() for value in given]
    torch.library.opcheck(torch.ops.ptd.diagonal_matrices.default, (*given, 8))
