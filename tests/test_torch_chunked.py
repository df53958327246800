"""S5's chunked form as one operator; nox -s triton-interpreter runs it on Triton too."""

from __future__ import annotations

import dataclasses

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
import ptd_torch.chunked as operators
from ptd_torch import backend, kernels
from ptd_torch.chunked import chunked, sum_of_products


def outputs_and_gradients(layer, params, u, upstream, fused):
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()} | {
        "u": u.clone().requires_grad_()
    }
    named = {name: value for name, value in leaves.items() if name != "u"}
    y = backend.apply(layer, named, leaves["u"], form="chunked", fused=fused)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), upstream.expand_as(y))]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("L", [1, 23])
@pytest.mark.parametrize("tiled", [(), ("tiles",)], ids=["walk", "tiles"])
def test_fused_layer_equals_layer(bidirectional, L, tiled, monkeypatch):
    run, shapes = operators.chunked, []
    monkeypatch.setattr(operators, "chunked", lambda first, *rest: shapes.append(first.shape) or run(first, *rest))
    layer = ptd.S5(64, 6, bidirectional=bidirectional)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    params = {name: backend.asarray(value, "float64") for name, value in leaves.items()}
    u = torch.randn(2, L, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    upstream = torch.ones(1, dtype=u.dtype)
    plain, fused = (outputs_and_gradients(layer, params, u, upstream, names) for names in ((), ("chunks", *tiled)))
    for expected, found in zip(plain, fused, strict=True):
        assert_close(found, expected)
    assert len(shapes) == 1


@pytest.mark.parametrize(("R", "K", "J", "N"), [(5, 64, 32, 64), (130, 128, 40, 128), (3, 192, 7, 192)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_of_products_is_that(R, K, J, N, dtype):
    rng = torch.Generator().manual_seed(0)
    u, weight, v, other = (torch.randn(*s, generator=rng).to(dtype) for s in ((R, K), (N, K), (R, J), (N, J)))
    expected = u.double() @ weight.double().t() + v.double() @ other.double().t()
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    assert_close(
        sum_of_products(u, weight, v, other).double(), expected, rtol=0, atol=rounding * float(expected.abs().max())
    )


def test_sum_of_products_takes_rows_as_they_lie_in_memory():
    """Cut from wider rows, and expanded, as the gradient of a sum is."""
    rng = torch.Generator().manual_seed(0)
    u, v = torch.randn(5, 128, generator=rng)[:, :64], torch.ones(1).expand(5, 32)
    weight, other = (torch.randn(64, n, generator=rng) for n in (64, 32))
    assert_close(sum_of_products(u, weight, v, other), u @ weight.t() + v @ other.t(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", [("chunks",), ("states",), ("chunks", "tiles"), ("states", "tiles")])
def test_an_empty_batch_has_empty_outputs_and_no_gradient(how, monkeypatch):
    one = dataclasses.replace(kernels.KERNELS["cpu"], chunk_length=lambda layer, L: 1)
    monkeypatch.setitem(kernels.KERNELS, "cpu", one)
    layer = ptd.S5(64, 6, bidirectional=True)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    params = {name: backend.asarray(value, "float32") for name, value in leaves.items()}
    y, *gradients = outputs_and_gradients(layer, params, torch.zeros(0, 7, 64), torch.ones(1), how)
    assert y.shape == (0, 7, 64)
    assert not any(gradient.any() for gradient in gradients)


def test_operator_passes_torchs_own_checks():
    shapes = ((1, 3, 2), (2, 1), (2, 4), (4, 2), (2, 2))
    rng = torch.Generator().manual_seed(0)
    arguments = tuple((0.3 * torch.randn(*s, generator=rng)).double().requires_grad_() for s in shapes)
    torch.library.opcheck(
        chunked, (*arguments, True), test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


@interpreter.needed
@pytest.mark.parametrize("exclusive", [False, True])
def test_segments_of_time_change_nothing_in_either_direction(exclusive, monkeypatch):
    from ptd_torch.triton import scan

    monkeypatch.setattr(scan, "ROWS", 4)
    rng = torch.Generator().manual_seed(0)
    a, drive, before = (torch.randn(*s, generator=rng) for s in ((2, 5), (2, 26, 2, 2, 5), (2, 26, 2, 2, 5)))
    a = (0.6 * a).clamp(-0.6, 0.6)
    for states in (None, before):
        one, cut = (scan.walk(a, drive, None, exclusive=exclusive, before=states, segments=s) for s in (1, 3))
        for expected, found in zip(one, cut, strict=True):
            assert expected is None or float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())
