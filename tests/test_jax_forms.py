"""Forms and recurrences of the jax backend against the definitions they stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ptd
from ptd.arrays import as_planes
from ptd.speed import TRAINING_STEPS
from ptd_jax import JaxBackend, blocks
from ptd_jax import backend as be
from ptd_jax.kernels import carries_by
from ptd_jax.recurrences import loop, tree

LAYERS = {"s5": ptd.S5(3, 6), "s4d": ptd.S4D(2, 4), "s5 both ways": ptd.S5(3, 6, bidirectional=True)}


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with jax.enable_x64(True):
        yield


def parameters(layer: ptd.Layer) -> dict:
    return {n: jnp.asarray(v) for n, v in ptd.initialize(layer, np.random.default_rng(0), init="legs").items()}


def draw(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("L", [1, 2, 3, 8, 13])
def test_tree_equals_loop(L):
    a, drive, state = 0.9 * jnp.exp(1j * draw(5)), draw(L, 3, 2, 5), draw(3, 2, 5)
    assert_allclose(jax.jit(tree)(a, drive, state), loop(a, drive, state), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("run", "reverse"), [(loop, False), (loop, True), (tree, True)])
def test_derivatives_of_recurrences_are_those_of_the_definition(run, reverse):
    """Forward and reverse mode, by coefficient, drive and state."""
    parts = [draw(2, 3), draw(6, 2, 2, 3), draw(2, 2, 3)]

    def by_definition(a, drive, state):
        x = [jax.lax.complex(state[:, 0], state[:, 1])]
        for d in drive[::-1] if reverse else drive:
            x.append((a[0] + 1j * a[1]) * x[-1] + jax.lax.complex(d[:, 0], d[:, 1]))
        return as_planes(jnp.stack(x[1:][::-1] if reverse else x[1:]))

    def here(a, drive, state):
        return run(a[0] + 1j * a[1], drive, state, reverse)

    def both_modes(f):
        y, moved = jax.jvp(f, parts, [2.0 * part for part in parts])
        return y, moved, jax.vjp(f, *parts)[1](draw(6, 2, 2, 3, seed=9))

    found, expected = jax.jit(lambda: (both_modes(here), both_modes(by_definition)))()
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-11, atol=1e-12), found, expected)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_carries_on_a_tree_equal_those_of_the_definition(shape):
    a, drive, state = 0.9 * jnp.exp(1j * draw(*shape)), draw(*shape[:-1], 2, 7, 2, 2, 5), draw(*shape[:-1], 2, 2, 5)
    found, expected = (
        jax.jit(carries_by("tree"))(a, drive, state),
        ptd.chunks.carries(*map(np.asarray, (a, drive, state))),
    )
    for x, y in zip(found, expected, strict=True):
        assert_allclose(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("L", "lengths", "kept"), [(12, None, 0), (11, (10, 3), 0), (11, (10, 3), blocks.KEPT)])
def test_blocks_of_time_equal_the_whole_scan_gradients_included(L, lengths, kept, monkeypatch):
    monkeypatch.setattr(blocks, "KEPT", kept)
    layer = LAYERS["s5 both ways"]
    params, u, w = parameters(layer), draw(2, L, layer.d_model), draw(2, L, layer.d_model, seed=3)
    lengths = None if lengths is None else np.array(lengths)

    def loss(params, u, T):
        y = (
            layer.apply(params, u, form="scan", lengths=lengths, step_scale=0.5, kernels=be.kernels)
            if T is None
            else blocks.apply(layer, params, u, T, lengths=lengths, step_scale=0.5)
        )
        return jnp.sum(w * y), y

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    found, expected = jax.jit(lambda: [gradient(params, u, T) for T in (4, None)])()
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-10, atol=1e-12), found, expected)


@pytest.mark.parametrize("layer", [LAYERS["s5"], LAYERS["s5 both ways"]], ids=str)
def test_blocks_of_time_carry_the_state(layer):
    params, u, state = parameters(layer), draw(2, 12, layer.d_model), draw(*layer.state_shape((2,)))
    call = {"state": state, "return_state": True}
    found, expected = jax.jit(
        lambda: (blocks.apply(layer, params, u, 4, **call), layer.apply(params, u, form="scan", **call))
    )()
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=0, atol=1e-12), found, expected)


def test_what_cannot_run_in_blocks_does_not():
    one, both, shape = LAYERS["s5"], LAYERS["s5 both ways"], (2, 12, 3)
    assert blocks.fits(one, shape, 4, {"return_state": True, "state": 0, "step_scale": 2.0})
    assert not blocks.fits(one, shape, 4, {"resets": np.zeros(12, bool)})
    assert not blocks.fits(one, shape, 4, {"step_scale": np.ones(12)})
    assert not blocks.fits(one, shape, 5, {"return_state": True})
    assert not blocks.fits(both, shape, 4, {"state": 0, "lengths": (3, 4)})
    assert not blocks.fits(ptd.S4D(3, 6), shape, 4, {})


@pytest.mark.parametrize(("L", "T"), [(400, 400), (4000, 2000), (1024, 1024), (10007, 2048)])
def test_blocks_divide_the_sequence_where_they_can(L, T):
    assert blocks.block_length(ptd.S5(8, 16), (1, L, 8)) == T


def test_the_form_and_the_blocks_of_a_call_are_visible_and_can_be_forced():
    layer = ptd.S5(4, 8, bidirectional=True)
    cpu, gpu = JaxBackend("cpu"), JaxBackend("gpu")
    shape = (1, 4096, 4)
    assert (cpu.form(layer, shape), cpu.block_length(layer, shape)) == ("scan", 2048)
    assert (gpu.form(layer, shape), gpu.block_length(layer, shape)) == ("chunked", None)
    assert cpu.form(layer, shape, form="chunked") == "chunked"
    assert gpu.form(layer, shape, resets=np.zeros(4096, bool)) == "scan"
    assert JaxBackend("cpu", "tree").block_length(layer, (1, 4096, 4)) is None
    with pytest.raises(ValueError, match=r"recurrence: expected one of 'loop', 'pallas', .*, got 'fft'"):
        JaxBackend("cpu", "fft")
    u, params = draw(1, 1100, 4), parameters(layer)
    outputs = [cpu.apply(layer, params, u), cpu.apply(layer, params, u, form="chunked"), gpu.apply(layer, params, u)]
    for y in outputs[1:]:
        assert_allclose(y, outputs[0], rtol=0, atol=1e-11)


def test_many_modes_and_short_runs_take_the_convolution_on_a_cpu():
    many, few = ptd.S4D(2, 128), ptd.S4D(2, 126)
    cpu, long, short = JaxBackend("cpu"), (2, 4097, 2), (2, 4096, 2)
    assert [cpu.form(layer, shape) for layer in (many, few) for shape in (short, long)] == [
        "convolution",
        *["chunked"] * 3,
    ]
    for other in (JaxBackend("gpu"), JaxBackend("cpu", chunk=64)):
        assert other.form(many, short) == "chunked"
    params, u = parameters(many), draw(3, 70, 2)
    both = [cpu.apply(many, params, u), cpu.apply(many, params, u, form="chunked")]
    assert_allclose(*both, rtol=0, atol=1e-11)


@pytest.mark.parametrize("layer", [LAYERS["s4d"], LAYERS["s5"]], ids=str)
@pytest.mark.parametrize("form", ["scan", "chunked", "convolution"])
def test_narrow_activations_keep_the_parameters_precision_in_the_state(layer, form):
    params = {n: v.astype(jnp.float32) for n, v in parameters(layer).items()}
    u = draw(2, 9, layer.d_model).astype(jnp.bfloat16)
    y, end = be.apply(layer, params, u, form=form, return_state=True)
    wide, end_wide = be.apply(layer, params, u.astype(jnp.float32), form=form, return_state=True)
    assert (y.dtype, end.dtype) == (jnp.bfloat16, jnp.float32)
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert_allclose(y.astype(jnp.float32), wide, rtol=0, atol=8 * eps * np.abs(wide).max())
    assert_allclose(end, end_wide, rtol=0, atol=8 * eps * np.abs(end_wide).max())
    assert form == "chunked" or np.array_equal(end, end_wide)


def test_a_learner_on_a_gpu_takes_the_kernel_and_chunks_by_size():
    gpu = JaxBackend("gpu")
    assert (gpu.recurrence, gpu.training.recurrence) == ("tree", "pallas")
    assert gpu.training is gpu.training  # one backend, so that learners share their programs
    assert be.training is be
    chosen = {name: gpu.training.kernels.chunk_length(r.model().layer, r.length) for name, r in TRAINING_STEPS.items()}
    assert (chosen["ListOps"], chosen["Image"], chosen["Path-X"]) == (1, 1, 4)
    assert gpu.training.kernels.chunk_length(ptd.S4D(8, 64), 1000) == 64


def test_chunk_length_and_recurrence_can_be_forced():
    gpu = JaxBackend("gpu", "tree", chunk=8)
    assert (gpu.training.recurrence, gpu.training.kernels.chunk_length(ptd.S5(4, 8), 100)) == ("tree", 8)
    assert gpu.kernels.chunk_length(ptd.S5(4, 8), 5) == 5
    with pytest.raises(ValueError, match=r"chunk: expected a positive integer, got 0"):
        JaxBackend("gpu", chunk=0)
