"""Sums of powers and sums over poles as Triton kernels, against core in double precision, through the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd import convolution
from ptd.arrays import Array, as_complex, imag, real
from ptd_torch import backend, cauchy, vandermonde

pytestmark = interpreter.needed

EPS = 2**-24
H = 2


@pytest.fixture
def calls(monkeypatch):
    """The names of the operators that were called."""
    found: list[str] = []
    for module, name in ((vandermonde, "sums_of_powers"), (cauchy, "sums_over_poles")):
        operator = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, _=(operator, name): found.append(_[1]) or _[0](*args))
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_disk(*shape: int) -> list[torch.Tensor]:
    """Real and imaginary parts of numbers of modulus 0.95 to 1, and one zero."""
    radius = 1 - 0.05 * draw(*shape, seed=3).abs().clamp(max=1)
    radius.view(-1)[0] = 0
    angle = 3 * draw(*shape, seed=4)
    return [radius * angle.cos(), radius * angle.sin()]


def differentiated(function, leaves: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """A function's results, real arrays, and the gradients of their sum with random weights by real leaves."""
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    results = function(*leaves)
    loss = sum((value * draw(*value.shape, seed=7 + i)).sum() for i, value in enumerate(results))
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [value.detach() for value in results] + [
        torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)
    ]


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    """The largest error of each result over its largest entry."""
    return [
        float((value - other).abs().max() / other.abs().max().clamp(min=1e-30))
        for value, other in zip(found, exact, strict=True)
    ]


# --- sums of powers

POWERS = {
    "one lag": ((), 5, 1),
    "a tile": ((), 3, 16),
    "several kernels of one system": ((3,), 5, 70),
    "more modes than a tile": ((), 33, 20),
    "several tiles, the last one cut": ((), 2, 1100),
}


def kernel_of(compute, L: int):
    """Leaves to [K]."""
    return lambda w_re, w_im, a_re, a_im: [compute(as_complex(w_re, w_im), as_complex(a_re, a_im), L)]


@pytest.mark.parametrize(("batch", "N", "L"), POWERS.values(), ids=POWERS)
def test_sums_of_powers_and_gradients_keep_their_digits_at_any_lag(batch, N, L, calls):
    """A power carries three roundings, whatever its lag; sums add theirs: within 16 of the largest entry in all."""
    leaves = [draw(*batch, H, N), draw(*batch, H, N, seed=1), *in_disk(H, N)]
    found = differentiated(kernel_of(vandermonde.vandermonde, L), leaves, torch.float32)
    assert calls == ["sums_of_powers"]
    exact = differentiated(kernel_of(convolution.vandermonde, L), leaves, torch.float64)
    assert max(errors(found, exact)) < 16 * EPS


def test_coefficients_of_fewer_and_of_more_axes_than_weights_are_broadcast():
    for of_weights, of_a in (((2, H, 3), (H, 3)), ((H, 3), (3,)), ((3,), (H, 3)), ((2, 1, 3), (H, 3))):
        leaves = [draw(*of_weights), draw(*of_weights, seed=1), *in_disk(*of_a)]
        found = differentiated(kernel_of(vandermonde.vandermonde, 20), leaves, torch.float32)
        exact = differentiated(kernel_of(convolution.vandermonde, 20), leaves, torch.float64)
        assert max(errors(found, exact)) < 16 * EPS


# --- sums over poles

POLES = {
    "of one feature": ([(H, 5)] * 4, (H, 5), 33),
    "shared, several input columns": ([(5,), (3, H, 5), (H, 5), (3, H, 5)], (5,), 5),
    "more sums and more poles than a tile": ([(H, 34)] * 5, (H, 34), 9),
    "one frequency": ([(H, 3)] * 4, (H, 3), 1),
}


def sums_of(compute, F: int, pairs: bool):
    """Leaves to real and imaginary parts of the sums at F frequencies from h = 0 to pi/2."""
    h = torch.arange(F, dtype=torch.float64) * (torch.pi / 2 / max(F - 1, 1))

    def run(*leaves: torch.Tensor) -> list[torch.Tensor]:
        *numerators, Lambda_re, Lambda_im, log_step = leaves
        v = [as_complex(*pair) for pair in zip(numerators[::2], numerators[1::2], strict=True)]
        circle = (h.sin().float().to(log_step), h.cos().float().to(log_step))
        found = compute(v, as_complex(Lambda_re, Lambda_im), log_step.exp()[:, None], *circle, pairs)
        return [part for y in found for part in (real(y), imag(y))]

    return run


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "all poles"])
@pytest.mark.parametrize(("shapes", "of_poles", "F"), POLES.values(), ids=POLES)
def test_sums_over_poles_and_gradients_lose_no_more_than_their_definition(shapes, of_poles, F, pairs, calls):
    """Near a pole 1/D magnifies the rounding of z: 16 times what the definition loses in float32, and 64 roundings."""
    numerators = [draw(*shape, seed=i) for i, shape in enumerate(shape for shape in shapes for _ in range(2))]
    leaves = [*numerators, -0.5 - draw(*of_poles, seed=50).abs(), 20 * draw(*of_poles, seed=51), draw(H, seed=52) - 3]
    found = differentiated(sums_of(cauchy.resolvent_sums, F, pairs), leaves, torch.float32)
    assert calls == ["sums_over_poles"]
    narrow, exact = (
        differentiated(sums_of(convolution.resolvent_sums, F, pairs), leaves, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    for error, own in zip(errors(found, exact), errors(narrow, exact), strict=True):
        assert error < 16 * own + 64 * EPS


def test_slow_poles_stay_in_range():
    """|z|^2 of 1e-22 and its inverse squared are no float32, so D is divided by |z|."""
    leaves = [torch.ones(1, 1), torch.zeros(1, 1), -torch.full((1, 1), 1e-4), torch.zeros(1, 1), torch.tensor([-16.1])]
    found = differentiated(sums_of(cauchy.resolvent_sums, 3, True), leaves, torch.float32)
    exact = differentiated(sums_of(convolution.resolvent_sums, 3, True), leaves, torch.float64)
    assert max(errors(found[:4], exact[:4])) < 64 * EPS


# --- layers and operators

LAYERS = {
    "s4d both ways": (ptd.S4D(2, 6, bidirectional=True), "legs"),
    "dss": (ptd.DSS(2, 4), "legs"),
    "s4": (ptd.S4(2, 6), "legs"),
    "s4, rank 2, all modes": (ptd.S4(2, 4, rank=2, conj_sym=False), "legt"),
}


def output(layer, dtype: torch.dtype, u: torch.Tensor, state: torch.Tensor | None) -> list[torch.Tensor]:
    """Output and gradients of the convolution form."""
    leaves = ptd.initialize(layer, np.random.default_rng(0), init=LAYERS_INIT[layer])
    names = list(leaves)
    values = [backend.asarray(leaves[name]) for name in names] + [u] + ([] if state is None else [state])

    def run(*values: torch.Tensor) -> list[torch.Tensor]:
        params = dict(zip(names, values, strict=False))
        x0 = None if state is None else values[-1]
        return [backend.apply(layer, params, values[len(names)], state=x0, form="convolution")]

    return differentiated(run, values, dtype)


LAYERS_INIT = dict(LAYERS.values())


@pytest.mark.parametrize("layer", LAYERS_INIT, ids=LAYERS)
@pytest.mark.parametrize("with_state", [False, True], ids=["at rest", "state"])
def test_convolution_form_runs_on_the_operators(layer, with_state, calls, monkeypatch):
    u, state = draw(2, 20, 2), draw(*layer.state_shape((2,)), seed=1) if with_state else None
    found = output(layer, torch.float32, u, state)
    name = "sums_over_poles" if layer.kind == "s4" else "sums_of_powers"
    assert calls == [name] * (1 + with_state) * (1 + layer.bidirectional)
    exact = output(layer, torch.float64, u, state)
    assert calls == [name] * (1 + with_state) * (1 + layer.bidirectional)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    narrow = output(layer, torch.float32, u, state)
    for error, own in zip(errors(found, exact), errors(narrow, exact), strict=True):
        assert error < 16 * own + 64 * EPS


def operands(name: str) -> tuple:
    """Arguments of an operator that pass its checks."""
    if name == "vandermonde":
        return draw(4, 2, 3), 0.5 * draw(2, 2, 3, seed=1), 20
    circle = torch.stack([torch.linspace(0, 1, 5), torch.linspace(1, 0, 5)])
    return draw(2, 4, H, 3), 1 + draw(2, H, 3, seed=1).abs(), circle, True


@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
def test_operators_pass_torchs_own_checks(name):
    first, second, *rest = operands(name)
    arguments = (first.requires_grad_(), second.requires_grad_(), *rest)
    torch.library.opcheck(getattr(torch.ops.ptd, name).default, arguments)


@pytest.mark.parametrize("dims", [(0, None), (None, 1), (1, 0)])
@pytest.mark.parametrize("name", ["vandermonde", "cauchy"])
def test_operators_over_a_batch_are_a_batch_of_operators(name, dims):
    operator, (first, second, *rest) = getattr(torch.ops.ptd, name), operands(name)
    pair = [
        value if dim is None else torch.stack([value, 2 * value], dim)
        for value, dim in zip((first, second), dims, strict=True)
    ]
    found = torch.vmap(operator, in_dims=(*dims, *(None for _ in rest)))(*pair, *rest)
    each = [
        operator(*(v if d is None else (1 + i) * v for v, d in zip((first, second), dims, strict=True)), *rest)
        for i in range(2)
    ]
    assert_close(found, torch.stack(each), rtol=1e-5, atol=1e-5)


def kernel(w: torch.Tensor, a: torch.Tensor) -> Array:
    return vandermonde.vandermonde(as_complex(w[..., 0], w[..., 1]), as_complex(a[..., 0], a[..., 1]), 9)


def test_double_precision_and_gradients_of_torch_func_are_left_to_core(calls):
    w, a = draw(H, 3, 2), 0.5 * draw(H, 3, 2, seed=1)
    wide = kernel(w.double(), a.double())
    slopes = torch.vmap(torch.func.grad(lambda w, a: kernel(w, a).sum()))(w, a)
    assert calls == []
    w.requires_grad_()
    narrow = kernel(w, a)
    assert calls == ["sums_of_powers"]
    assert_close(narrow.double(), wide, rtol=0, atol=1e-5)
    assert_close(slopes, torch.autograd.grad(narrow.sum(), w)[0], rtol=1e-5, atol=1e-5)


def ensemble(layer: ptd.Layer) -> tuple[Callable, dict[str, torch.Tensor]]:
    """The convolution form as a function of the leaves, and the leaves of two members, stacked."""
    members = [ptd.initialize(layer, np.random.default_rng(seed), init="legs") for seed in (0, 1)]
    stacked = {
        name: backend.asarray(np.stack([each[name] for each in members]), "float32").requires_grad_()
        for name in members[0]
    }
    u = draw(2, 20, 2)
    return lambda params: backend.apply(layer, params, u, form="convolution"), stacked


@pytest.mark.parametrize("layer", [ptd.S4D(2, 6), ptd.S4(2, 6)], ids=["s4d", "s4"])
def test_ensemble_of_layers_runs_on_the_operators(layer, calls):
    """Under vmap the members are further rows of one call, made by the operator's rule; gradients go through it."""
    run, stacked = ensemble(layer)
    found, weights = torch.vmap(run)(stacked), draw(2, 2, 20, 2, seed=1)
    assert len(calls) == 2  # within vmap, and by the rule
    expected = torch.stack([run({name: leaf[i] for name, leaf in stacked.items()}) for i in range(2)])
    ours, each = ([y.detach(), *torch.autograd.grad(y, list(stacked.values()), weights)] for y in (found, expected))
    assert max(errors(ours, each)) < 64 * EPS


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch 2.13's compiler of its own
def test_compiled_ensemble_is_left_to_core(calls):
    run, stacked = ensemble(ptd.S4D(2, 6))
    found = torch.compile(torch.vmap(run), backend="aot_eager", fullgraph=True)(stacked)
    assert not calls
    assert max(errors([found], [torch.vmap(run)(stacked)])) < 64 * EPS


def test_a_second_derivative_is_refused():
    w, a = draw(1, 2, 3).requires_grad_(), 0.5 * draw(1, 2, 3, seed=1)
    (first,) = torch.autograd.grad(
        torch.ops.ptd.vandermonde(w, a.requires_grad_(), 5).square().sum(), w, create_graph=True
    )
    with pytest.raises(RuntimeError, match="expected a first derivative"):
        torch.autograd.grad(first.sum(), a)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
def test_tangents_are_left_to_core(calls):
    re, im, a_re, a_im = (draw(H, 3, seed=i) for i in range(4))
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        weights = as_complex(forward_ad.make_dual(re, torch.ones_like(re)), im)
        K = vandermonde.vandermonde(weights, as_complex(0.5 * a_re, 0.5 * a_im), 5)
        tangent = forward_ad.unpack_dual(K).tangent
    assert not calls
    assert float(tangent.abs().max()) > 0
