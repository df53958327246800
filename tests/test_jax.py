"""The jax backend as JAX users meet it: transformations of the pure functions, NNX modules, optax."""

from __future__ import annotations

import pickle

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ptd
from ptd_jax import backend as be
from ptd_jax.kernels import _loop_per_step, associative_scan

LAYER = ptd.S5(4, 8)
U = np.random.default_rng(0).standard_normal((3, 9, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    drawn = ptd.initialize(LAYER, np.random.default_rng(0), init="legs")
    return {name: be.asarray(value, "float32") for name, value in drawn.items()}


@pytest.fixture(scope="module")
def y(params):
    return be.apply(LAYER, params, U)


def test_vmap_over_the_batch_equals_the_batch(params, y):
    np.testing.assert_allclose(jax.vmap(lambda u: be.apply(LAYER, params, u))(U), y, rtol=0, atol=1e-6)


def test_jvp_of_the_linear_layer_along_its_input_is_its_output(params, y):
    _, tangent = jax.jvp(lambda u: be.apply(LAYER, params, u), (U,), (U,))
    np.testing.assert_allclose(tangent, y, rtol=0, atol=1e-6)


def test_step_runs_inside_lax_scan(params, y):
    def body(state, u_k):
        y_k, state = be.step(LAYER, params, u_k, state)
        return state, y_k

    _, stepped = jax.lax.scan(body, jnp.zeros(LAYER.state_shape((3,))), jnp.moveaxis(U, 1, 0))
    np.testing.assert_allclose(jnp.moveaxis(stepped, 0, 1), y, rtol=0, atol=1e-6)


def test_remat_gives_the_same_gradient(params):
    def loss(params):
        return jnp.mean(be.apply(LAYER, params, U) ** 2)

    plain, rematerialised = jax.grad(loss)(params), jax.grad(jax.checkpoint(loss))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, rematerialised)


def test_two_forms_of_the_scan_agree():
    rng = np.random.default_rng(1)
    a, b, x0 = (rng.standard_normal((*shape, 2)) @ np.array([0.6, 0.6j]) for shape in ((33, 5), (2, 33, 5), (2, 5)))
    a, b, x0 = (jnp.asarray(value.astype(np.complex64)) for value in (a / abs(a), b, x0))
    np.testing.assert_allclose(associative_scan(a, b, x0), _loop_per_step(a, b, x0), rtol=0, atol=1e-4)


def test_nnx_optimizer_lowers_the_loss_of_a_layer():
    layer = be.S5(4, 8, init="legs")
    optimizer = nnx.Optimizer(layer, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        loss, gradient = nnx.value_and_grad(lambda layer: jnp.mean(layer(U) ** 2))(layer)
        optimizer.update(layer, gradient)
        return loss

    losses = [float(step(layer, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_model_module_nests_its_leaves_by_name():
    model = ptd.SequenceModel(ptd.S4D(8, 4), 2, 1, 3, norm="batch")
    leaves = model.initialize(np.random.default_rng(0), init="legs")
    module = be.module(model, leaves)
    assert module.leaves().keys() == leaves.keys()
    assert isinstance(module.blocks[1].layer.Lambda_re, nnx.Param)
    assert isinstance(module.blocks[1].norm.mean, nnx.BatchStat)


def test_host_arrays_a_learner_was_given_or_gave_are_not_touched_by_training():
    """The compiled loop reuses the memory of its state; none of it may be the caller's."""
    model = ptd.SequenceModel(ptd.S5(4, 4), 1, 2, 3)
    leaves = {n: v.astype(np.float32) for n, v in model.initialize(np.random.default_rng(0), init="legs").items()}
    given = {name: value.copy() for name, value in leaves.items()}
    learner = be.learner(model, leaves, ptd.Optimizer(lr=1e-2, total_steps=9), seed=0)
    placed = learner.place(np.ones((4, 5, 2), np.float32), np.arange(4) % 3)
    learner.train(placed, np.zeros((2, 2), int))
    gave = learner.snapshot()
    kept = {name: value.copy() for name, value in gave.items()}
    learner.train(placed, np.zeros((2, 2), int))
    assert all(np.array_equal(leaves[name], given[name]) for name in given)
    assert all(np.array_equal(gave[name], kept[name]) for name in kept)


def test_foreign_snapshot_is_refused():
    model = ptd.SequenceModel(ptd.S5(4, 4), 1, 2, 3)
    learner = be.learner(model, model.initialize(np.random.default_rng(0)), ptd.Optimizer(lr=1e-2, total_steps=9), 0)
    with pytest.raises(ValueError, match=r"^params: expected the leaves of this learner, got none named "):
        learner.restore({"leaves.x": np.zeros(1)})


def test_set_with_a_row_too_few_is_refused():
    model = ptd.SequenceModel(ptd.S5(4, 4), 1, 2, 3)
    learner = be.learner(model, model.initialize(np.random.default_rng(0)), ptd.Optimizer(lr=1e-2, total_steps=9), 0)
    with pytest.raises(ValueError, match=r"^targets: expected 4 rows, one per input, got 3"):
        learner.place(np.ones((4, 5, 2), np.float32), np.zeros(3, int))


def test_float64_leaves_are_refused_where_jax_has_none():
    message = r"^dtype: expected float32, all that jax has by default, got .float64.; run it inside `with backend\.prec"
    with pytest.raises(ValueError, match=message):
        be.S5(4, 8, init="legs", dtype="float64")
    with be.precision("float64"):
        assert be.asarray(U, "float64").dtype == "float64"


def test_modules_and_backends_survive_pickle():
    module = ptd.backend("jax").S5(4, 8, init="legs")
    again = pickle.loads(pickle.dumps(module))
    u = jnp.asarray(np.random.default_rng(0).standard_normal((9, 4)), jnp.float32)
    np.testing.assert_array_equal(again(u), module(u))


def test_host_steps_of_step_are_checked_as_those_of_apply():
    module = ptd.backend("jax").S5(4, 8, init="legs")
    u_k, state = jnp.ones((2, 4)), module.initial_state((2,))
    for bad in (-1000.0, float("nan"), [1.0, 0.0]):
        with pytest.raises(ValueError, match=r"^step_scale: expected finite values > 0"):
            module.step(u_k, state, step_scale=bad)
    with pytest.raises(ValueError, match=r"^step_scale: expected a shape that broadcasts"):
        module.step(u_k, state, step_scale=[1.0, 1.0, 1.0])
    found = module.step(u_k, state, step_scale=[1.0, 2.0])[0]
    np.testing.assert_allclose(found, module.step(u_k, state, step_scale=jnp.array([1.0, 2.0]))[0], rtol=1e-6)


def test_symbolic_length_of_the_convolution_is_refused():
    """It looped for ever: halving it never gives zero."""
    module = ptd.backend("jax").S4(2, 4, init="legs")
    (length,) = jax.export.symbolic_shape("l")
    with pytest.raises(ValueError, match=r"^L: expected a length that is known, got l; an exporter"):
        jax.export.export(jax.jit(lambda u: module(u, form="convolution")))(
            jax.ShapeDtypeStruct((length, 2), jnp.float32)
        )
