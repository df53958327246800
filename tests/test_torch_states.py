"""S5's chunks of one sample as one operator, and states tile by tile; nox -s triton-interpreter runs both on Triton."""

from __future__ import annotations

import dataclasses

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
import ptd_torch.states as operators
from ptd.speed import TRAINING_STEPS
from ptd_torch import backend, kernels
from ptd_torch.from_rest import drive_gradient, states_from_rest
from ptd_torch.states import dot_columns, product_and_sums, states_form


def draws(*shapes, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=rng).to(dtype) for shape in shapes]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles in few rows."""
    if interpreter.RUNS:
        from ptd_torch.triton import states as triton_states

        monkeypatch.setattr(triton_states, "ROWS", 4)


@pytest.fixture
def one_sample(monkeypatch):
    one = dataclasses.replace(kernels.KERNELS["cpu"], chunk_length=lambda layer, L: 1)
    monkeypatch.setitem(kernels.KERNELS, "cpu", one)


def outputs_and_gradients(layer, leaves, u, fused, dtype, activations):
    leaves = {name: backend.asarray(value, dtype).requires_grad_() for name, value in leaves.items()}
    u = u.to(getattr(torch, activations)).requires_grad_()
    y = backend.apply(layer, leaves, u, form="chunked", fused=fused)
    (upstream,) = draws(y.shape, dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [u, *leaves.values()], upstream)]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("L", "dtype", "tiled"), [
    (1, "float32", ("tiles",)), (10, "float64", ("tiles",)), (10, "float32", ("tiles",)), (10, "float32", ()),
])  # fmt: skip
def test_layer_by_its_operator_equals_layer(bidirectional, L, dtype, tiled, one_sample, monkeypatch):
    run, shapes = operators.states_form, []
    monkeypatch.setattr(operators, "states_form", lambda first, *rest: shapes.append(first.shape) or run(first, *rest))
    layer = ptd.S5(64, 6, bidirectional=bidirectional)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    (u,) = draws((2, L, 64))
    plain, fused = (outputs_and_gradients(layer, leaves, u, names, dtype, dtype) for names in ((), ("states", *tiled)))
    close = {"float64": 1e-10, "float32": 1e-5}[dtype]
    for expected, found in zip(plain, fused, strict=True):
        assert_close(found, expected, rtol=0, atol=close * float(expected.abs().max()))
    assert shapes == [(2, L, 64)]


def test_layer_without_skip_and_with_narrow_activations_has_every_gradient(one_sample):
    layer = ptd.S5(64, 6, bidirectional=True, skip=False)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    (u,) = draws((2, 10, 64))
    wide = outputs_and_gradients(layer, leaves, u, (), "float32", "float32")
    narrow = outputs_and_gradients(layer, leaves, u, ("states", "tiles"), "float32", "bfloat16")
    assert narrow[0].dtype == narrow[1].dtype == torch.bfloat16
    for expected, found in zip(wide, narrow, strict=True):
        assert float((found.float() - expected).norm()) < 0.03 * float(expected.norm())


def by_loop(a, drive, directions, exclusive):
    """States of drive (R, n, D, 2, M), or (R, n, 1, 2, M) for all directions, one sample after the other."""
    n, a = drive.shape[1], torch.complex(*a)
    found = []
    for direction in range(directions):
        d = torch.complex(*drive[:, :, min(direction, drive.shape[2] - 1)].unbind(2))
        x, states = torch.zeros_like(d[:, 0]), {}
        for k in range(n)[:: -1 if direction else 1]:
            states[k] = x if exclusive else a * x + d[:, k]
            x = a * x + d[:, k]
        x = torch.stack([states[k] for k in range(n)], dim=1)
        found.append(torch.stack([x.real, x.imag], dim=2))
    return torch.stack(found, dim=2)


@pytest.mark.parametrize(("R", "n", "M", "directions", "given", "exclusive"), [
    (3, 1, 5, 2, 1, False), (2, 13, 5, 2, 1, False), (2, 13, 5, 1, 1, False), (1, 12, 64, 2, 1, False),
    (1, 12, 64, 2, 2, True), (2, 13, 5, 2, 2, True), (2, 9, 5, 1, 1, True),
])  # fmt: skip
def test_states_and_gradients_tile_by_tile_are_the_loops(R, n, M, directions, given, exclusive):
    a, drive, upstream = draws((2, M), (R, n, given, 2, M), (R, n, directions, 2, M))
    a = (0.6 * a).clamp(-0.6, 0.6)
    exact = [v.double().requires_grad_() for v in (a, drive)]
    expected = by_loop(*exact, directions, exclusive)
    grads = torch.autograd.grad(expected, exact, upstream.double(), materialize_grads=True)
    states = states_from_rest(a, drive, directions, tiled=True, exclusive=exclusive)
    by_drive, by_a = drive_gradient(a, upstream, states, tiled=True, shared=given < directions, exclusive=exclusive)
    for found, exact_one in zip((states, by_a, by_drive), (expected, *grads), strict=True):
        exact_one = exact_one.detach()
        atol = 2e-6 * max(1.0, float(exact_one.abs().max()))
        assert_close(found.double(), exact_one, rtol=0, atol=atol)


@pytest.mark.parametrize(("R", "M"), [(3, 40), (2, 64)])
def test_narrow_states_of_more_lanes_than_a_tile_has_are_the_loops(R, M):
    a, drive, upstream = draws((2, M), (R, 6, 1, 2, M), (R, 6, 2, 2, M))
    a, narrow = (0.6 * a).clamp(-0.6, 0.6), [v.bfloat16() for v in (drive, upstream)]
    exact = [v.double().requires_grad_() for v in (a, narrow[0])]
    expected = by_loop(*exact, 2, False)
    grads = torch.autograd.grad(expected, exact, narrow[1].double())
    states = states_from_rest(a, narrow[0], 2, tiled=True)
    by_drive, by_a = drive_gradient(a, narrow[1], states, tiled=True, shared=True)
    for found, exact_one in zip((states, by_a, by_drive), (expected.detach(), *grads), strict=True):
        assert_close(found.double(), exact_one, rtol=0, atol=0.02 * float(exact_one.abs().max()))


def test_chunks_on_a_gpu_are_of_one_sample_where_the_direct_product_costs_more_than_states():
    rows = {name: (row.model().layer, row.length) for name, row in TRAINING_STEPS.items()}
    chosen = {name: kernels.chunk_length_beside_states(*row) for name, row in rows.items()}
    assert chosen == {"ListOps": 1, "Text": 1, "Image": 1, "Pathfinder": 1, "Retrieval": 2, "Path-X": 2}
    assert kernels.chunk_length_on_gpu(*rows["Pathfinder"]) == 2


@interpreter.needed
def test_gradient_over_spans_of_tiles_is_that_of_single_tiles(monkeypatch):
    from ptd_torch.triton import states as triton_states

    a, grad, states = draws((2, 5), (2, 22, 2, 2, 5), (2, 22, 2, 2, 5))
    a = (0.6 * a).clamp(-0.6, 0.6)
    single = triton_states.adjoint(a, grad, states, shared=True, exclusive=False)
    monkeypatch.setattr(triton_states, "PROGRAMS", 2)
    spans = triton_states.adjoint(a, grad, states, shared=True, exclusive=False)
    for expected, found in zip(single, spans, strict=True):
        assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@interpreter.needed
def test_sum_over_more_parts_than_32_bits_count_reads_each_of_them():
    """As of the gradients by a of very many short sequences; only the memory that is read is ever there."""
    from ptd_torch.triton import columns

    H, programs = 2**21, 1025
    parts, found = torch.empty(1, programs, H, dtype=torch.float16), torch.empty(1, H, dtype=torch.float16)
    parts[..., :8] = 1.0
    columns._totals[(1, 1)](parts, found, programs, H=H, PARTS=1024, FEATURES=8, num_warps=8)
    assert found[0, :8].tolist() == [programs] * 8


@pytest.mark.parametrize(("R", "K", "N"), [(5, 24, 64), (130, 40, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_with_skip_and_sums_is_that(R, K, N, dtype):
    x, weight, dy, u = draws((R, K), (N, K), (R, N), (R, N), dtype=dtype)
    (skip,) = draws((N,))
    y, sums = product_and_sums(x, weight, skip, dy, u)
    expected = x.double() @ weight.double().t() + skip.double() * dy.double()
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    assert_close(y.double(), expected, rtol=0, atol=rounding * float(expected.abs().max()))
    for found in (sums, dot_columns(dy, u, torch.float32)):
        assert_close(found.double(), (dy.double() * u.double()).sum(0), rtol=0, atol=1e-5 * R**0.5)


@pytest.mark.parametrize("skip", [None, (2,)])
@pytest.mark.parametrize("added", [True, False])
def test_operator_passes_torchs_own_checks(skip, added):
    shapes = ((1, 3, 2), (2, 1), (2, 2), (2, 4), (2,))
    u, a, into, out, weights = ((0.3 * v).double().requires_grad_() for v in draws(*shapes))
    arguments = (u, a, into, out, None if skip is None else weights, added, True)
    checked = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(states_form, arguments, test_utils=checked)
