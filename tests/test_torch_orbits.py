"""Powers of S4's transitions as Triton kernels against core in double precision, through Triton's interpreter."""

from __future__ import annotations

import dataclasses
import importlib

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd import chunks
from ptd_torch import backend
from ptd_torch.kernels import KERNELS

pytestmark = interpreter.needed

module = importlib.import_module("ptd_torch.orbits")

#: (H, n, D, T): tiles with and without padding, one and two directions, chunks of one sample.
SIZES = [(2, 6, 2, 8), (1, 17, 1, 8), (2, 5, 1, 1), (1, 32, 2, 2)]


@pytest.fixture
def calls(monkeypatch):
    """T of every call of the operator."""
    found: list[int] = []
    operator = module.operator
    monkeypatch.setattr(module, "operator", lambda *args: found.append(args[-1]) or operator(*args))
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments(H: int, n: int, D: int) -> list[torch.Tensor]:
    """A of norm near one, as transitions have it, a row and columns."""
    A = draw(H, n, n)
    return [0.99 * A / torch.linalg.matrix_norm(A, 2)[:, None, None], draw(H, n, seed=1), draw(H, n, D, seed=2)]


def results(orbits, dtype: torch.dtype, given: list[torch.Tensor], T: int) -> list[torch.Tensor]:
    """What orbits gives, and the gradients of a sum of it."""
    leaves = [value.to(dtype).requires_grad_() for value in given]
    found = orbits(*leaves, T=T)
    loss = sum((value * draw(*value.shape, seed=7 + i).to(dtype)).sum() for i, value in enumerate(found))
    return [value.detach() for value in (*found, *torch.autograd.grad(loss, leaves))]


@pytest.mark.parametrize(("H", "n", "D", "T"), SIZES)
def test_orbits_and_gradients_are_those_of_core_in_double_precision(H, n, D, T, calls):
    given = arguments(H, n, D)
    found = results(module.orbits, torch.float32, given, T)
    assert calls == [T]
    for i, (value, exact) in enumerate(zip(found, results(chunks.orbits, torch.float64, given, T), strict=True)):
        # Orbits are formed in double precision and rounded once; gradients are sums of 2 n log2(T) terms in float32.
        roundings = 1 if i < 3 else 2 * n * T.bit_length()
        assert_close(value.double(), exact, rtol=0, atol=roundings * 2**-24 * float(exact.abs().max()))


def test_products_in_single_precision_are_as_good_as_cores(monkeypatch):
    from ptd_torch.triton import orbits

    monkeypatch.setattr(orbits, "EXACT", False)
    given = arguments(1, 6, 2)
    found = results(module.orbits, torch.float32, given, 8)
    narrow, wide = (results(chunks.orbits, dtype, given, 8) for dtype in (torch.float32, torch.float64))
    for value, own, exact in zip(found, narrow, wide, strict=True):
        lost = 4 * float((own - exact).abs().max()) + 4 * 2**-24 * float(exact.abs().max())
        assert_close(value.double(), exact, rtol=0, atol=lost)


def test_what_the_kernels_do_not_take_is_left_to_core(calls):
    given = arguments(2, 3, 1)
    module.orbits(*given, 5)
    module.orbits(*(value.double() for value in given), 4)
    torch.func.grad(lambda A: module.orbits(A, *given[1:], 4)[0].sum())(given[0])
    assert calls == []
    module.orbits(*given, 4)
    assert calls == [4]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
def test_tangents_pass_through(calls):
    forward_ad, (A, *rest) = torch.autograd.forward_ad, arguments(2, 3, 1)
    with forward_ad.dual_level():
        _, _, whole = module.orbits(forward_ad.make_dual(A, A), *rest, 4)
        assert_close(forward_ad.unpack_dual(whole).tangent, 4 * torch.linalg.matrix_power(A, 4), rtol=1e-5, atol=1e-6)
    assert calls == []


def test_under_vmap_one_run_of_the_kernels_takes_the_batch_as_further_features(monkeypatch):
    from ptd_torch.triton import orbits

    runs: list[torch.Size] = []
    run = orbits.orbits
    monkeypatch.setattr(orbits, "orbits", lambda A, *rest: runs.append(A.shape) or run(A, *rest))
    A, row, columns = arguments(6, 5, 2)
    A, columns = A.view(3, 2, 5, 5), columns.view(3, 2, 5, 2)

    def every(row: torch.Tensor, *of: torch.Tensor, T: int) -> tuple[torch.Tensor, ...]:
        return torch.func.vmap(lambda A, columns: module.orbits(A, row, columns, T))(*of)

    found = results(every, torch.float32, [row[:2], A, columns], 4)
    assert runs == [(6, 5, 5)]
    for value, exact in zip(found, results(every, torch.float64, [row[:2], A, columns], 4), strict=True):
        assert_close(value.double(), exact, rtol=0, atol=30 * 2**-24 * float(exact.abs().max()))


def test_layer_forms_its_chunks_by_the_operator(calls):
    layer = ptd.S4(2, 4)
    params = {
        name: backend.asarray(value, "float32")
        for name, value in ptd.initialize(layer, np.random.default_rng(0), init="legs").items()
    }
    kernels = dataclasses.replace(KERNELS["cpu"], chunk_length=lambda layer, L: 16, per_feature_chunks=None)
    layer.apply(params, draw(1, 32, 2), kernels=kernels, form="chunked")
    assert calls == [16]


def test_operator_passes_torchs_own_checks():
    given = [value.requires_grad_() for value in arguments(2, 3, 2)]
    torch.library.opcheck(torch.ops.ptd.orbits.default, (*given, 4))
