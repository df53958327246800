"""Forward mode through layers of the torch backend, plain and in torch.func: operators must not drop its tangents."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

import ptd
from ptd_torch import backend

# torch's own forward mode (2.13) compiles by what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

be = backend.on("cpu")
ONE = torch.tensor(1.0, dtype=torch.float64)
#: Longer than a chunk of any kind of layer.
U = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 70, 4)))
CALLS = {
    "scan": {"form": "scan"},
    "chunked": {"form": "chunked"},
    "state": {"form": "chunked", "state": True},
    "irregular samples": {"step_scale": [0.5, 2.0] * 35},
    "resets": {"resets": [False] * 30 + [True] + [False] * 39},
}


def output(
    kind: type, *, u: torch.Tensor = U, state: bool = False, **call: Any
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The output of a layer as a function of one number that scales its leaves, its input and its state."""
    layer = kind(4, 8)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    params = {name: be.asarray(value, "float64") for name, value in leaves.items()}
    x0 = torch.ones(layer.state_shape((2,)), dtype=torch.float64)

    def run(s: torch.Tensor) -> torch.Tensor:
        start = {"state": s * x0} if state else {}
        return be.apply(layer, {name: s * leaf for name, leaf in params.items()}, s * u, **start, **call)

    return run


def dual_slope(function: Callable, s: torch.Tensor) -> torch.Tensor:
    """The derivative by forward mode without torch.func; zero where no tangent arrives, as torch has it."""
    with forward_ad.dual_level():
        y, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(s, torch.ones_like(s))))
    return torch.zeros_like(y) if slope is None else slope


def functional_slope(function: Callable, s: torch.Tensor) -> torch.Tensor:
    return torch.func.jvp(function, (s,), (torch.ones_like(s),))[1]


SLOPES = pytest.mark.parametrize("slope", [dual_slope, functional_slope])


@SLOPES
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", [ptd.S4, ptd.S4D, ptd.DSS, ptd.S5])
def test_tangents_are_those_of_the_gradient(kind, call, slope):
    """A weighted sum of the slopes is the slope of the weighted sum, which reverse mode has."""
    function, weights = output(kind, **call), torch.from_numpy(np.random.default_rng(3).standard_normal(U.shape))
    s = ONE.clone().requires_grad_()
    (expected,) = torch.autograd.grad((weights * function(s)).sum(), s)
    assert_close((weights * slope(function, ONE)).sum(), expected, rtol=1e-9, atol=0)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch 2.13, of any constant
@pytest.mark.parametrize(("form", "L"), [("scan", 5), ("convolution", 5), ("chunked", 70)])
@pytest.mark.parametrize("kind", [ptd.S4, ptd.S4D, ptd.DSS, ptd.S5])
def test_linearize_has_the_tangents_of_jvp(kind, form, L, monkeypatch):
    """It folds constants without what is written into them in place, so a layer writes into none."""
    # For every operation that it traces torch (2.13) reads the whole call stack, and nobody looks at it.
    monkeypatch.setattr(sys, "tracebacklimit", 0, raising=False)
    function = output(kind, u=U[:, :L], form=form)
    _, linear = torch.func.linearize(function, ONE)
    assert_close(linear(ONE), functional_slope(function, ONE), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["scan", "chunked"])
def test_forward_mode_over_a_gradient_is_a_second_derivative(form):
    """Of a sum of fourth powers of a scaled signal: 12 times the sum."""
    layer = be.S5(4, 8, init="legs").double()
    found = torch.func.hessian(lambda s: layer(s * U, form=form).pow(4).sum())(ONE)
    assert_close(found, 12 * layer(U, form=form).pow(4).sum(), rtol=1e-12, atol=0)


@SLOPES
@pytest.mark.parametrize("name", ["chunks", "states"])
def test_kernels_by_name_are_refused(name, slope):
    function = output(ptd.S5, form="chunked", fused=[name])
    with pytest.raises(ValueError, match=rf"^fused: expected no kernels by name .* forward mode, got \['{name}'\]$"):
        slope(function, ONE)
