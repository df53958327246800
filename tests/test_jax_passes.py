"""The parts of a training block with gradients of their own against core's, differentiated as they stand there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ptd
from ptd import model as core
from ptd_jax import backend as be
from ptd_jax import passes
from ptd_jax.dropout import call_key, dropped

KEY = jnp.uint32(7)


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with jax.enable_x64(True):
        yield


def draw(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def same_gradients(here, there, *arguments) -> None:
    """Values and gradients by every argument, of outputs weighted at random."""

    def both(f):
        y, pull = jax.vjp(f, *arguments)
        return y, *pull(draw(*y.shape, seed=9))

    for x, y in zip(*jax.jit(lambda: (both(here), both(there)))(), strict=True):
        assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_gelu_and_its_gradient_are_those_of_core():
    same_gradients(passes.gelu, core.gelu, 3 * draw(40, 5))


@pytest.mark.parametrize(("rate", "over_time"), [(0.0, False), (0.4, False), (0.4, True)])
def test_gated_sum_and_its_gradient_have_one_mask(rate, over_time):
    def there(keep, z, bias, x):
        gated = keep * core.sigmoid(z + bias)
        return x + (dropped(gated, KEY, rate, over_time) if rate else gated)

    def here(keep, z, bias, x):
        return passes.gated_sum(keep, z, bias, x, KEY, rate, over_time)

    same_gradients(here, there, draw(3, 8, 4), draw(3, 8, 4, seed=2), draw(4), draw(3, 8, 4, seed=3))


@pytest.mark.parametrize(("lengths", "epsilon"), [(None, 1e-5), ((8, 3, 5), 1e-5), ((8, 3, 5), 0.1)])
def test_batch_norm_and_its_gradient_are_those_of_core(lengths, epsilon):
    """Over valid samples, a mean far from zero; what is beyond a length is normalised, but moves no moment."""
    lengths, near = None if lengths is None else jnp.asarray(lengths), draw(4, seed=5)

    def by(norm):
        return lambda x, scale, bias: norm(x, lengths, scale, bias, near, epsilon)[0]

    x = draw(3, 8, 4) * jnp.arange(1.0, 5.0) + 3.0
    same_gradients(by(passes.batch_norm), by(core.batch_norm), x, draw(4, seed=2), draw(4, seed=3))
    for found, expected in zip(*(norm(x, lengths, x[0, 0], x[0, 1], near, epsilon) for norm in NORMS), strict=True):
        assert_allclose(found, expected, rtol=1e-12)


NORMS = (passes.batch_norm, core.batch_norm)


def test_batch_norm_of_a_constant_feature_has_a_finite_gradient():
    x = jnp.ones((2, 3, 4))
    gradient = jax.grad(lambda x: jnp.sum(passes.batch_norm(x, None, jnp.ones(4), jnp.zeros(4))[0] ** 3))(x)
    assert np.isfinite(gradient).all()


def test_batch_norm_keeps_narrow_activations_narrow_and_moments_wide():
    y, mean, var = passes.batch_norm(draw(2, 3, 4).astype(jnp.bfloat16), None, jnp.ones(4), jnp.zeros(4))
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float64, jnp.float64)


@pytest.mark.parametrize(("activation", "norm"), [("half_glu2", "batch"), ("gelu", "batch"), ("full_glu", "layer")])
def test_a_training_pass_by_these_blocks_is_cores(activation, norm):
    model = ptd.SequenceModel(ptd.S5(4, 4), 1, 2, 3, norm=norm, activation=activation)
    params = {n: jnp.asarray(v) for n, v in model.initialize(np.random.default_rng(0), init="legs").items()}
    trained = {name: value for name, value in params.items() if not core.is_statistic(name)}
    u, call = draw(3, 6, 2), {"training": core.Training(lambda x, *_: x)}

    def loss(trained, **blocks):
        y, updated = be.apply_model(model, params | trained, u, **call, **blocks)
        return jnp.sum(y**3), updated

    def blocks(model, i, leaves, x, **call):
        return passes.training_block(model, i, leaves, x, key=KEY, batch=len(x), **call)

    found = jax.jit(jax.value_and_grad(lambda p: loss(p, run_block=blocks), has_aux=True))(trained)
    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-9, atol=1e-10), found, expected)


def test_blocks_draw_masks_of_their_own():
    masks = [dropped(jnp.ones((2, 500, 10)), call_key(call_key(KEY, i), 0), 0.5, False) > 0 for i in range(2)]
    assert abs(float(jnp.mean(masks[0] == masks[1])) - 0.5) < 5 * 0.5 / 100
