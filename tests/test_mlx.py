"""The mlx backend as MLX users meet it: mlx.nn modules, mlx.optimizers, transformations, the learner, GPU dispatch."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn

import ptd
from ptd_mlx import backend as be
from ptd_mlx import speed, streams

LAYER = ptd.S5(4, 8)
U = np.random.default_rng(0).standard_normal((3, 9, 4)).astype(np.float32)
MODEL = ptd.SequenceModel(ptd.S5(6, 4), 1, 2, 3, norm="batch", dropout=0.2)


@pytest.fixture(scope="module")
def params():
    drawn = ptd.initialize(LAYER, np.random.default_rng(0), init="legs")
    return {name: be.asarray(value, "float32") for name, value in drawn.items()}


@pytest.fixture(scope="module")
def y(params):
    return np.array(be.apply(LAYER, params, mx.array(U)))


def test_a_layer_is_an_mlx_module_whose_leaves_are_its_parameters():
    layer = be.S5(4, 8, init="legs")
    assert isinstance(layer, nn.Module)
    assert layer.trainable_parameters().keys() == ptd.S5(4, 8).shapes().keys()


def test_an_mlx_optimizer_lowers_the_loss_of_a_layer():
    layer, u = be.S5(4, 8, init="legs"), mx.array(U)
    optimizer = optim.Adam(1e-2)
    gradient = nn.value_and_grad(layer, lambda u: mx.mean(layer(u) ** 2))
    losses = []
    for _ in range(20):
        loss, g = gradient(u)
        optimizer.update(layer, g)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_batch_norm_statistics_are_no_trainable_parameters():
    module = be.module(MODEL, MODEL.initialize(np.random.default_rng(0), init="legs"))
    assert module.leaves().keys() == MODEL.shapes().keys()
    norm = module.trainable_parameters()["blocks"][0]["norm"]
    assert norm.keys() == {"scale", "bias"}


def test_vmap_over_the_batch_equals_the_batch(params, y):
    mapped = mx.vmap(lambda u: be.apply(LAYER, params, u, form="convolution"))(mx.array(U))
    np.testing.assert_allclose(mapped, y, rtol=0, atol=1e-6)


def test_host_values_are_copied_not_shared():
    host = np.zeros(4, np.float32)
    array = be.asarray(host, "float32")
    host[:] = 1
    assert np.all(np.array(array) == 0)


def test_float64_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^dtype: expected one of 'float32', got 'float64'"):
        be.asarray(np.zeros(2), "float64")


@pytest.mark.parametrize("cores", [1, 3])
def test_products_over_several_cores_equal_one(cores, monkeypatch):
    monkeypatch.setattr(streams, "_cores", lambda: cores)
    monkeypatch.setattr(streams, "WORTHWHILE", 1)
    monkeypatch.setattr(streams, "_streams", lambda: [mx.new_stream(mx.cpu) for _ in range(cores)])
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 3), (4, 3)))
    g = rng.standard_normal((2, 5, 4)).astype(np.float32)
    (found,), by = mx.vjp(streams.linear, [mx.array(x), mx.array(weight)], [mx.array(g)])
    np.testing.assert_allclose(found, x @ weight.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by[0], g @ weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by[1], np.einsum("bkm,bkn->mn", g, x), rtol=1e-5, atol=1e-5)


def learner(seed=0):
    optimizer = ptd.Optimizer(lr=1e-2, total_steps=20, weight_decay=0.1, warmup_steps=2)
    return be.learner(MODEL, MODEL.initialize(np.random.default_rng(1), init="legs"), optimizer, seed)


def data():
    rng = np.random.default_rng(2)
    return rng.standard_normal((8, 7, 2)).astype(np.float32), np.arange(8) % 3, np.array([7, 3, 5, 7, 7, 1, 2, 7])


ORDER = np.random.default_rng(3).permutation(8)[None, :].repeat(6, 0)


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], name)


def test_splitting_a_run_changes_no_bit():
    whole, split = learner(), learner()
    losses = whole.train(whole.place(*data()), ORDER)
    placed = split.place(*data())
    parts = np.concatenate([split.train(placed, ORDER[:2]), split.train(placed, ORDER[2:])])
    np.testing.assert_array_equal(losses, parts)
    same(whole.snapshot(), split.snapshot())


def test_a_restored_learner_goes_on_as_the_first_would_have():
    first, second = learner(), learner()
    first.train(first.place(*data()), ORDER[:3])
    second.restore(first.snapshot())
    first.train(first.place(*data()), ORDER[3:])
    second.train(second.place(*data()), ORDER[3:])
    same(first.snapshot(), second.snapshot())
    assert any(name.startswith("leaves.blocks.0.layer.") for name in first.snapshot())


def test_another_models_snapshot_is_refused():
    with pytest.raises(ValueError, match=r"^params: expected"):
        learner().restore({"leaves.D": np.zeros(3)})


def test_another_seed_drops_other_units():
    first, second = learner(seed=0), learner(seed=1)
    assert first.train(first.place(*data()), ORDER[:1]) != second.train(second.place(*data()), ORDER[:1])


def test_evaluation_runs_in_batches():
    trained = learner()
    placed = trained.place(*data())
    whole = trained.outputs(*data()[:1], data()[2])
    np.testing.assert_allclose(trained.evaluate(placed, np.arange(8), 3), whole, rtol=0, atol=1e-5)


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="a GPU's allocator rounds sizes up")
def test_memory_of_the_gradient_grows_linearly_with_the_length():
    layer = ptd.S5(8, 16)
    params = {n: be.asarray(v, "float32") for n, v in ptd.initialize(layer, np.random.default_rng(0)).items()}
    gradient = mx.grad(lambda u: mx.sum(be.apply(layer, params, u) ** 2))

    def peak(L):
        u = mx.ones((1, L, 8))
        mx.eval(u)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(gradient(u))
        return mx.get_peak_memory() - before

    assert peak(8192) < 4.4 * peak(2048)


@pytest.mark.parametrize("scan", speed.PLAIN.values(), ids=speed.PLAIN)
def test_what_the_speed_is_compared_with_computes_the_same(params, y, scan):
    L = 8
    found = speed.plain_s5(params, mx.array(U[:, :L]), scan)
    np.testing.assert_allclose(found, y[:, :L], rtol=0, atol=1e-6)
