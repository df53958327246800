"""The examples of the jax backend in other module libraries, and what a deployment needs."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from numpy.testing import assert_allclose

import ptd
from ptd_jax import JaxBackend
from ptd_jax import backend as be
from ptd_jax.training import parameter_groups

EXAMPLES = Path(__file__).parents[1] / "examples"
LAYER = ptd.S5(4, 8)


@pytest.fixture(scope="module")
def params():
    drawn = ptd.initialize(LAYER, np.random.default_rng(0), init="legs")
    return {name: be.asarray(value, "float32") for name, value in drawn.items()}


@pytest.mark.parametrize("module", ["with_equinox", "with_linen"])
def test_layers_learn_inside_other_libraries_modules(module):
    losses = runpy.run_path(str(EXAMPLES / f"{module}.py"))["main"]()
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_exported_forward_runs_with_any_batch_and_equals_the_layer(params):
    batch = export.symbolic_shape("batch")[0]
    u = jax.ShapeDtypeStruct((batch, 300, 4), jnp.float32)
    exported = export.export(jax.jit(lambda params, u: be.apply(LAYER, params, u)))(params, u)
    loaded = export.deserialize(exported.serialize())
    u = jnp.asarray(np.random.default_rng(1).standard_normal((3, 300, 4)), jnp.float32)
    assert_allclose(loaded.call(params, u), be.apply(LAYER, params, u), rtol=0, atol=1e-6)


def test_exported_step_equals_the_layers(params):
    u, state = jnp.ones((2, 4)), jnp.ones(LAYER.state_shape((2,)))
    exported = export.export(jax.jit(lambda params, u, state: be.step(LAYER, params, u, state)))(params, u, state)
    found = export.deserialize(exported.serialize()).call(params, u, state)
    for x, y in zip(found, be.step(LAYER, params, u, state), strict=True):
        assert_allclose(x, y, rtol=0, atol=1e-6)


def test_a_layer_is_exported_for_a_gpu_from_any_machine(params):
    forward = jax.jit(lambda params, u: JaxBackend("gpu", "pallas").apply(LAYER, params, u))
    exported = export.export(forward, platforms=["cuda"], disabled_checks=[ANY_TARGET])(params, jnp.ones((2, 300, 4)))
    assert exported.platforms == ("cuda",)


#: Pallas promises no stable format of its kernels, which export asks for.
ANY_TARGET = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")


@pytest.mark.parametrize("rule", ["standard", "BandCdecay", "BfastandCdecay"])
def test_optimiser_groups_follow_the_rule_at_any_depth(params, rule):
    optimizer = ptd.Optimizer(lr=1e-2, ssm_lr=1e-3, weight_decay=0.1, total_steps=10, rule=rule, frozen=("D",))
    transform, tree = parameter_groups(optimizer), {"blocks": [params, {"gate.weight": jnp.ones(2)}]}
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, tree), transform.init(tree), tree)
    for (path, value), update in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(updates), strict=True):
        group = optimizer.group(path[-1].key)
        assert_allclose(update, -group.lr * (1 + group.weight_decay * value) * (group.lr > 0), rtol=1e-4)
    assert isinstance(transform, optax.GradientTransformation)
