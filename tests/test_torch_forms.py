"""Which form runs S4D and DSS in torch on a CPU: chosen by size, visible, and forced by name."""

from __future__ import annotations

import dataclasses
import pickle

import dense
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ptd import DSS, S4D, S5
from ptd.convolution import causal_convolution
from ptd.kernels import Kernels, by_kind
from ptd_torch import TorchBackend
from ptd_torch import backend as be
from ptd_torch.kernels import KERNELS

CPU = be.on("cpu")
MANY = DSS(2, 64)


@pytest.mark.parametrize(
    ("layer", "batch", "L", "form"),
    [
        (MANY, (1,), 2048, "convolution"),
        (MANY, (1,), 2049, "chunked"),
        (MANY, (2, 3), 6 * 2048, "convolution"),
        (MANY, (2, 3), 6 * 2048 + 1, "chunked"),
        (MANY, (), 8, "convolution"),
        (MANY, (0,), 8, "chunked"),
        (DSS(2, 63), (8,), 8, "chunked"),
        (S4D(2, 128, bidirectional=True), (8,), 8, "convolution"),
        (S4D(2, 126), (8,), 8, "chunked"),
    ],
)
def test_form_follows_the_sizes(layer, batch, L, form):
    assert CPU.form(layer, (*batch, L, 2)) == form


def test_s5_is_not_asked():
    assert CPU.form(S5(2, 128), (8, 8, 2)) == CPU.form(S5(2, 128), (1, 10**6, 2)) != "convolution"


@pytest.mark.parametrize(
    ("call", "form"),
    [
        ({"state": 0}, "chunked"),
        ({"return_state": True}, "chunked"),
        ({"resets": np.zeros(8, bool)}, "scan"),
        ({"step_scale": np.ones(8)}, "scan"),
        ({"step_scale": 2.0, "lengths": np.array([8])}, "convolution"),
        ({"form": "chunked"}, "chunked"),
        ({"form": "scan", "return_state": True}, "scan"),
    ],
)
def test_states_and_changing_steps_go_on_as_before_and_names_win(call, form):
    assert CPU.form(MANY, (1, 8, 2), **call) == form


def test_a_gpu_keeps_chunks():
    assert TorchBackend("cuda").form(MANY, (8, 8, 2)) == "chunked"


@pytest.mark.parametrize("device", KERNELS)
def test_a_table_of_kernels_goes_where_its_module_is_sent(device):
    sent = pickle.loads(pickle.dumps(KERNELS[device]))
    assert sent.fastest_form(MANY, (8, 8)) == KERNELS[device].fastest_form(MANY, (8, 8))


def test_what_is_said_is_what_runs():
    ran, params = [], dense.parameters(MANY)
    u = np.random.default_rng(1).standard_normal((1, 70, 2))

    def convolved(u, K):
        ran.append("convolution")
        return causal_convolution(u, K)

    kernels = Kernels(causal_convolution=convolved, fastest_form=CPU.kernels.fastest_form)
    found = MANY.apply(params, u, kernels=kernels)
    assert ran == ["convolution"]
    by_chunks = MANY.apply(params, u, form="chunked", kernels=kernels)
    never = dataclasses.replace(kernels, fastest_form=by_kind({"dss": "chunked"}))
    assert np.array_equal(MANY.apply(params, u, kernels=never), by_chunks)
    assert ran == ["convolution"]
    assert_allclose(found, by_chunks, rtol=0, atol=1e-12 * np.abs(found).max())


def test_sizes_that_are_no_numbers_decide_nothing():
    """As jax's exporter leaves them open: to compare them would bind or fail."""

    class Open:
        """A size that refuses to be compared."""

    assert MANY.form_of(CPU.kernels, (Open(), 5000, 2)) == "chunked"


@pytest.mark.parametrize("strict", [False, True])
def test_exports_for_any_batch(strict):
    layer = CPU.DSS(2, 64)
    sizes = {"u": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(layer, (torch.ones(3, 5000, 2),), dynamic_shapes=sizes, strict=strict)
    u = torch.ones(2, 5000, 2)
    torch.testing.assert_close(exported.module()(u), layer(u, form="chunked"))
