"""Modules in a user's own loop: train() and eval(), gradients, optimiser groups, compilers; alike in all frameworks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import mlx.core as mx
import mlx.nn
import mlx.utils
import numpy as np
import pytest
import torch
from flax import nnx
from user_loops import RULE, Jax, Mlx, Torch, U

import ptd
from ptd.contract import Unsupported
from ptd.model import Training, is_statistic
from ptd_torch.adamw import AdamW

BATCH_NORM = ptd.SequenceModel(ptd.S5(6, 4), 2, 3, 4, norm="batch", norm_momentum=0.7)
DROPOUT = dataclasses.replace(BATCH_NORM, dropout=0.3)
#: Of few kernels: mlx calls a C++ compiler for each.
SMALL = ptd.SequenceModel(ptd.S5(4, 2), 1, 3, 4, norm="batch", activation="gelu", dropout=0.5)


def leaves(model):
    """Initial leaves in float32, statistics that no batch has."""
    drawn = model.initialize(np.random.default_rng(1), init="legs")
    return {name: (value + 0.25 * is_statistic(name)).astype(np.float32) for name, value in drawn.items()}


FRAMEWORKS = [Torch(), Jax(), Mlx()]


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.be.name)
def framework(request) -> Any:
    return request.param


def output(framework, module, **call):
    return framework.be.to_numpy(module(framework.be.asarray(U), **call))


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def statistics(module):
    return {name: value for name, value in module.leaves().items() if is_statistic(name)}


def reference(model):
    """Output and updated statistics of one training pass without dropout, by core."""
    params = {name: value.astype(np.float64) for name, value in leaves(model).items()}
    return model.apply(params, U.astype(np.float64), training=Training(lambda x, rate, over_time: x))


def test_new_module_drops_out(framework):
    module = framework.module(DROPOUT, leaves(DROPOUT))
    assert np.abs(output(framework, module) - output(framework, module)).max() > 1e-3


def test_module_in_evaluation_mode_is_the_pure_function(framework):
    module = framework.module(DROPOUT, leaves(DROPOUT))
    module.eval()
    close(output(framework, module), DROPOUT.apply(leaves(DROPOUT), U))
    assert all(np.array_equal(value, leaves(DROPOUT)[name]) for name, value in module.leaves().items())


def test_module_goes_back_to_training(framework):
    module = framework.module(DROPOUT, leaves(DROPOUT))
    module.eval()
    module.train()
    assert np.abs(output(framework, module) - output(framework, module)).max() > 1e-3


def test_training_pass_gives_the_output_and_statistics_of_core(framework):
    y, expected = reference(BATCH_NORM)
    module = framework.module(BATCH_NORM, leaves(BATCH_NORM))
    close(output(framework, module), y)
    found = statistics(module)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value)


def test_layer_is_the_same_in_both_modes(framework):
    layer = ptd.S5(3, 4)
    module = framework.module(layer, ptd.initialize(layer, np.random.default_rng(0), init="legs"))
    trains = output(framework, module)
    module.eval()
    np.testing.assert_array_equal(output(framework, module), trains)


def test_gradients_of_a_training_pass_are_those_of_the_pure_function(framework):
    module, be = framework.module(BATCH_NORM, leaves(BATCH_NORM)), framework.be
    found = framework.gradients(module)
    fixed = {name: be.asarray(value, "float32") for name, value in leaves(BATCH_NORM).items()}

    def loss(**trained):
        call = {"training": Training(lambda x, rate, over_time: x)}
        return framework.loss(lambda u: be.apply_model(BATCH_NORM, fixed | trained, u, **call)[0])

    expected = be.gradients(loss, {name: fixed[name] for name in fixed if not is_statistic(name)})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], be.to_numpy(value))


def test_gradients_move_the_statistics_as_the_pass_does(framework):
    module = framework.module(BATCH_NORM, leaves(BATCH_NORM))
    framework.gradients(module)
    for name, value in reference(BATCH_NORM)[1].items():
        close(statistics(module)[name], value)


def test_loop_lowers_the_loss(framework):
    losses = framework.train(framework.module(DROPOUT, leaves(DROPOUT)), 40)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_schedule_is_that_of_every_learner_and_of_the_groups(warmup_steps):
    """Under a gradient that stays the same Adam's update is the rate."""
    rule = ptd.Optimizer(lr=0.5, total_steps=9, warmup_steps=warmup_steps)
    expected = [0.5 * rule.schedule(step) for step in range(11)]
    one = {"D": np.ones(1, np.float32)}
    adamw = AdamW(rule, {"D": torch.zeros(1)})
    close([adamw.rates(torch.tensor(step))[0] for step in range(11)], expected, 1e-6)
    transform, moved = Jax.be.parameter_groups(None, rule), []
    state = transform.init(one)
    for _ in range(11):
        update, state = transform.update(one, state, one)
        moved.append(-float(update["D"][0]))
    close(moved, expected, 1e-5)
    groups, leaf, moved = Mlx.be.parameter_groups(None, rule), {"D": mx.zeros(1)}, []
    groups.init(leaf)
    for _ in range(11):
        before, leaf = leaf, groups.apply_gradients({"D": mx.ones(1)}, leaf)
        moved.append((before["D"] - leaf["D"]).item())
    close(moved, expected, 1e-5)


def test_first_step_moves_each_leaf_at_the_rate_of_its_group(framework):
    module = framework.module(BATCH_NORM, leaves(BATCH_NORM))
    framework.train(module, 1)
    moved = {name: np.abs(value - leaves(BATCH_NORM)[name]).max() for name, value in module.leaves().items()}
    # Adam's first update is lr sign(gradient); so small ones as those of Lambda_re come less near it.
    for name in ("layer.B_re", "layer.Lambda_im", "layer.C_re", "norm.scale"):
        close(moved[f"blocks.1.{name}"], RULE.group(name).lr, 1e-4)
    assert moved["blocks.1.layer.log_step"] == 0
    close(moved["blocks.0.norm.mean"], np.abs(reference(BATCH_NORM)[1]["blocks.0.norm.mean"] - 0.25).max())


def test_compiled_training_passes_draw_masks_and_move_statistics(framework):
    module = framework.module(SMALL, leaves(SMALL))
    call = framework.compiled(module)
    first, second = (framework.be.to_numpy(call()) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    step = reference(SMALL)[1]["blocks.0.norm.mean"] - 0.25  # before dropout, the same in every pass
    close(statistics(module)["blocks.0.norm.mean"] - 0.25, step * (1 + SMALL.norm_momentum))


def test_copy_of_a_module_has_its_statistics_and_mode(framework, tmp_path):
    module = framework.module(DROPOUT, leaves(DROPOUT))
    output(framework, module)
    other = framework.copied(module, tmp_path)
    assert np.abs(output(framework, other) - output(framework, other)).max() > 1e-3  # as new ones, it trains
    other = framework.copied(module, tmp_path)
    module.eval()
    other.eval()
    np.testing.assert_array_equal(output(framework, other), output(framework, module))


def test_a_flag_for_training_is_refused_with_the_remedy(framework):
    module = framework.module(BATCH_NORM, leaves(BATCH_NORM))
    with pytest.raises(ValueError, match=r"^training: expected None or [^\n]*, got True; of a module call train\(\)"):
        output(framework, module, training=True)


@pytest.mark.parametrize("framework", [Torch(), Mlx()], ids=["torch", "mlx"])
def test_print_is_the_description_in_one_line(framework):
    module = framework.module(BATCH_NORM, leaves(BATCH_NORM))
    assert repr(module) == f"Module({BATCH_NORM!r})"


def test_reference_only_evaluates():
    module = ptd.backend("numpy").module(DROPOUT, leaves(DROPOUT))
    module.eval()
    close(module(U), DROPOUT.apply(leaves(DROPOUT), U))
    with pytest.raises(Unsupported, match=r"^numpy: no training"):
        module.train()


# --- flax nnx --------------------------------------------------------------------------------------------------


def drawing(*rngs):
    """Outputs of a module without rngs of its own, one per rngs given to a call."""
    module = ptd.backend("jax").module(DROPOUT, leaves(DROPOUT))
    call = functools.partial(module, jnp.asarray(U))
    return [call(rngs=given) for given in rngs]


def test_the_calls_rngs_decide_the_masks():
    first, again, other = drawing(nnx.Rngs(dropout=1), nnx.Rngs(dropout=1), nnx.Rngs(2))
    assert (jnp.abs(first - again).max() < 1e-5, jnp.abs(first - other).max() > 1e-3) == (True, True)


def test_rngs_without_a_dropout_stream_fall_back_to_default():
    default, named, key = drawing(nnx.Rngs(1), nnx.Rngs(params=0, default=1), nnx.Rngs(1)["dropout"]())
    close(default, named)
    close(default, key)


@pytest.mark.parametrize("given", [None, 3])
def test_dropout_without_rngs_is_refused_with_the_remedy(given):
    with pytest.raises(ValueError, match=r"^rngs: expected [^\n]*, got (None|3); pass rngs=nnx\.Rngs\(0\)"):
        drawing(given)


def test_training_without_dropout_asks_for_no_rngs():
    module = ptd.backend("jax").module(BATCH_NORM, leaves(BATCH_NORM))
    close(module(jnp.asarray(U)), reference(BATCH_NORM)[0])


def test_views_of_a_module_have_modes_of_their_own():
    module = Jax().module(DROPOUT, leaves(DROPOUT))
    view = nnx.view(module, deterministic=True, use_running_average=True)
    close(view(jnp.asarray(U)), DROPOUT.apply(leaves(DROPOUT), U))
    assert not module.deterministic


def test_dropout_beside_kept_statistics_is_refused():
    view = nnx.view(Jax().module(DROPOUT, leaves(DROPOUT)), use_running_average=True)
    with pytest.raises(ValueError, match=r"^use_running_average: expected False where dropout acts"):
        view(jnp.asarray(U))


def test_only_statistics_move_where_dropout_is_off():
    view = nnx.view(Jax().module(DROPOUT, leaves(DROPOUT)), deterministic=True)
    close(view(jnp.asarray(U)), reference(DROPOUT)[0])


def test_vmap_over_modules_keeps_statistics_apart():
    module = Jax().module(BATCH_NORM, leaves(BATCH_NORM))
    graph, state = nnx.split(module)
    stacked = jax.tree.map(lambda value: jnp.stack([value, value]), state)

    def passed(state, u):
        module = nnx.merge(graph, state)
        module(u)
        return nnx.state(module, nnx.BatchStat)

    moved = jax.vmap(passed)(stacked, jnp.stack([U, 2 * U]))
    mean = moved["blocks"][0]["norm"]["mean"][...]
    assert jnp.abs(mean[0] - mean[1]).max() > 1e-3


# --- mlx -------------------------------------------------------------------------------------------------------


def test_unfreezing_leaves_statistics_frozen():
    module = Mlx().module(BATCH_NORM, leaves(BATCH_NORM))
    before = mlx.utils.tree_flatten(module.trainable_parameters())
    module.freeze()
    module.unfreeze()
    after = mlx.utils.tree_flatten(module.trainable_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert not any(is_statistic(name) for name, _ in after)


def test_frozen_leaves_stay_whatever_rate_a_loop_sets():
    loop = Mlx()
    module, groups = loop.module(BATCH_NORM, leaves(BATCH_NORM)), loop.be.parameter_groups(None, RULE)
    groups.learning_rate = 0.1
    groups.update(module, mlx.nn.value_and_grad(module, loop.loss)(module)[1])
    moved = {name: np.abs(value - leaves(BATCH_NORM)[name]).max() for name, value in module.leaves().items()}
    assert moved["blocks.0.layer.log_step"] == 0
    close(moved["blocks.0.layer.D"], RULE.lr, 1e-3)  # the schedule's: it has the last word


# --- torch -----------------------------------------------------------------------------------------------------


def test_statistics_are_known_by_their_norm():
    net = torch.nn.Module()
    net.mean, net.var = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    (group,) = Torch.be.parameter_groups(net, RULE)
    assert (group["params"], group["lr"]) == ([net.mean, net.var], RULE.lr)


def test_replica_of_data_parallel_runs_and_moves_the_statistics():
    """torch replicates to GPUs only; here its replica is filled as torch.nn.parallel.replicate fills it."""
    module = Torch().module(BATCH_NORM, leaves(BATCH_NORM))
    inner = list(module.modules())
    replicas = {each: each._replicate_for_data_parallel() for each in inner}
    for each, replica in replicas.items():
        for name, child in each._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in each._parameters.items():
            setattr(replica, name, parameter.clone())
    assert not list(replicas[module].parameters())
    y, expected = reference(BATCH_NORM)
    close(replicas[module](torch.tensor(U)).detach(), y)
    close(statistics(module)["blocks.1.norm.mean"], expected["blocks.1.norm.mean"])
