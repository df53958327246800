"""Kernels of the convolution form in jax: memory linear in the kernel, every derivative, products in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose

import ptd
from ptd import convolution
from ptd.kernels import Kernels
from ptd_jax import backend as be
from ptd_jax import convolution as blocked

H, N = 2, 3


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with jax.enable_x64(True):
        yield


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def derivatives(function: Callable, *arguments: jax.Array) -> Callable[[], Any]:
    """The value, its derivative along a direction, the gradient of a weighted sum, and how that moves along it."""

    def weighted(*arguments: jax.Array) -> jax.Array:
        y = function(*arguments)
        return jnp.sum(draw(*y.shape, seed=8) * y * y)

    along = tuple(draw(*x.shape, seed=9 + i) for i, x in enumerate(arguments))
    gradient = jax.grad(weighted, tuple(range(len(arguments))))
    return lambda: (jax.jvp(function, arguments, along), jax.jvp(gradient, arguments, along))


def assert_same_derivatives(found: Callable, expected: Callable, *arguments: jax.Array) -> None:
    pair = jax.jit(lambda: [derivatives(f, *arguments)() for f in (found, expected)])()
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-9, atol=1e-10 * float(jnp.abs(y).max())), *pair)


@pytest.mark.parametrize("L", [1, 2, 13])
def test_sums_of_powers_have_every_derivative_at_a_zero_eigenvalue_too(L):
    def kernel(w: jax.Array, a: jax.Array) -> jax.Array:
        return be.kernels.vandermonde(lax.complex(*w), lax.complex(*a), L)

    def definition(w: jax.Array, a: jax.Array) -> jax.Array:
        w, a, power = lax.complex(*w), lax.complex(*a), jnp.ones((H, N), complex)
        K = []
        for _ in range(L):
            K.append(jnp.sum(w * power, axis=-1).real)
            power = power * a
        return jnp.stack(K, axis=-1)

    assert_same_derivatives(kernel, definition, draw(2, H, N), (0.5 * draw(2, H, N, seed=1)).at[:, 0, 0].set(0.0))


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("F", [3, 4, 8, 9])
def test_sums_by_blocks_of_frequencies_have_every_derivative(F, pairs, monkeypatch):
    monkeypatch.setattr(blocked, "SMALLEST_BLOCK", 4)
    circle = jnp.stack([jnp.sin(jnp.linspace(0.0, 1.5, F)), jnp.cos(jnp.linspace(0.0, 1.5, F))])
    run, definition = (
        lambda *arguments, f=module.sums_over_poles: f(*arguments, circle, pairs) for module in (blocked, convolution)
    )
    assert_same_derivatives(run, definition, draw(2, 5, H, N), 1.0 + jnp.abs(draw(2, H, N, seed=1)))


@pytest.mark.parametrize("layer", [ptd.S4(H, 6), ptd.S4(H, 4, rank=2, conj_sym=False)], ids=["pairs", "all modes"])
def test_s4_by_blocks_equals_its_definition_from_a_state(layer, monkeypatch):
    monkeypatch.setattr(blocked, "SMALLEST_BLOCK", 2)
    drawn = ptd.initialize(layer, np.random.default_rng(0), init="legs" if layer.rank == 1 else "legt")
    params = {name: jnp.asarray(value) for name, value in drawn.items()}
    u, state = draw(2, 21, H), draw(*layer.state_shape((2,)), seed=2)
    tables = [be.kernels, Kernels()]
    found, expected = jax.jit(
        lambda: [layer.apply(params, u, form="convolution", state=state, kernels=table) for table in tables]
    )()
    assert_allclose(found, expected, rtol=0, atol=1e-12)


def held(function: Callable, *arguments: jax.Array) -> int:
    """Bytes that the gradient of a sum of squares takes beside its arguments."""
    gradient = jax.grad(lambda *arguments: jnp.sum(function(*arguments) ** 2), tuple(range(len(arguments))))
    return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_kernels_grows_with_their_size_not_with_the_modes():
    """Per number of K^ and sum: value, cotangent, one block of 1/D (8 tables of F/N), and again what XLA copies."""
    H, N, L, Q, bytes_ = 2, 128, 2**14, 4, 4
    w, a = (draw(2, H, N, seed=i).astype(jnp.float32) for i in range(2))
    powers = held(lambda w, a: be.kernels.vandermonde(lax.complex(*w), lax.complex(*a), L), w, a)
    assert powers < bytes_ * H * (8 * L + 6 * N * 2 * np.sqrt(L)) < bytes_ * H * N * L / 4

    F = L // 2
    coefficients, circle = draw(2, Q, H, N).astype(jnp.float32), draw(2, F).astype(jnp.float32)
    by_blocks, at_once = (
        held(lambda c, p, f=module.sums_over_poles: f(c, p, circle, True), coefficients, a)
        for module in (blocked, convolution)
    )
    bound = bytes_ * H * F * (2 * 2 * 2 * Q + 16)
    assert by_blocks < bound < at_once / 4


def precisions(jaxpr: Any) -> Iterator[Any]:
    """Of all products of matrices in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from precisions(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("layer", [ptd.S4(H, 6), ptd.S4(H, 4, rank=2, conj_sym=False), ptd.S4D(H, 4)], ids=str)
def test_kernels_are_generated_in_full_precision_where_products_may_be_fast(layer):
    params = {name: draw(*shape, seed=3).astype(jnp.float32) for name, shape in layer.shapes().items()}
    u = draw(30, H).astype(jnp.float32)
    with be.fast_products():
        run = jax.make_jaxpr(lambda params: layer.apply(params, u, form="convolution", kernels=be.kernels))
        program = run(params)
    found = set(precisions(program.jaxpr))
    assert found == {(lax.Precision.HIGHEST, lax.Precision.HIGHEST)}


def test_what_is_kept_is_itself_each_number_for_itself():
    x = jnp.asarray([complex("nan"), 1 - 2j, complex(0, float("inf")), 0j])
    for each in (x, x[1:], x[:0], x[1:].real):
        np.testing.assert_array_equal(jax.jit(blocked.kept)(each)[1:2], each[1:2])
    np.testing.assert_array_equal(jax.jit(blocked.kept)(x[1:]), x[1:])
    np.testing.assert_array_equal(jax.vmap(blocked.kept)(x[1::2, None]), x[1::2, None])
    assert_same_derivatives(lambda x: blocked.kept(x) ** 3, lambda x: x**3, draw(2, 3))
