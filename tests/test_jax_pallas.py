"""The Pallas kernels in interpret mode against the definitions; interpret mode runs what the kernel says, anywhere."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from numpy.testing import assert_allclose

import ptd
from ptd import chunks, recurrence
from ptd_jax import kernels, pallas_gpu, pallas_tpu
from ptd_jax.recurrences import loop


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def coefficient(*shape: int) -> np.ndarray:
    return 0.95 * np.exp(1j * draw(*shape))


def close(found, expected) -> None:
    for x, y in zip(found, expected, strict=True):
        assert_allclose(x, y, rtol=0, atol=1e-12 * np.abs(y).max())


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("shape", "n", "M"), [((), 5, 8), ((3,), 19, 3)])
def test_gpu_carries_equal_the_definition(shape, n, M, monkeypatch):
    """Both directions, whole unrolled groups and a rest, modes that fill no tile, and time in segments."""
    monkeypatch.setattr(pallas_gpu, "SHORTEST_SEGMENT", 6)
    a, drive, start = coefficient(*shape, M), draw(*shape, 2, n, 2, 2, M), draw(*shape, 2, 2, 2, M)
    start[..., 1, :, :] = 0.0
    found = jax.jit(lambda *x: pallas_gpu.carries(*x, interpret=True))(a, drive, start)
    close(found, chunks.carries(a, drive, start[..., 0, :, :]))


@pytest.mark.parametrize("per_step", [False, True])
def test_gpu_scan_and_its_gradient_equal_the_definition(per_step):
    L, M = 11, 4
    a = coefficient(2, L, M) if per_step else coefficient(M)
    drive, state, w = (draw(2, *shape, 2) @ [1, 1j] for shape in ((L, M), (M,), (L, M)))
    resets = np.arange(L) % 5 == 3
    a = np.where(resets[:, None], 0, a) if per_step else a

    def loss(scan, a, drive, state):
        x = scan(a, drive, state)
        return jnp.sum(jnp.real(w * x)), x

    def here(*x):
        return pallas_gpu.scan(*x, interpret=True)

    gradients = [jax.grad(lambda *x, s=s: loss(s, *x), (0, 1, 2), has_aux=True) for s in (here, recurrence.scan)]
    (found, x), (expected, y) = jax.jit(lambda *v: [g(*v) for g in gradients])(a, drive, state)
    close([*found, x], [*expected, y])


def test_gpu_carries_differentiate_as_the_tree():
    a, drive, start = coefficient(4), draw(2, 9, 2, 2, 4), draw(2, 2, 2, 4)
    weights = draw(2, 9, 2, 2, 4, seed=5), draw(2, 2, 2, 4, seed=6)

    def loss(carries, *arguments):
        return sum(jnp.sum(w * x) for w, x in zip(weights, carries(*arguments), strict=True))

    def here(*x):
        return pallas_gpu.carries(*x, interpret=True)

    by_tree = kernels.RECURRENCES["tree"]().carries
    gradients = [jax.grad(lambda *x, f=f: loss(f, *x), (0, 1, 2)) for f in (here, by_tree)]
    found, expected = jax.jit(lambda *v: [g(*v) for g in gradients])(a, drive, start)
    close(found, expected)


@pytest.mark.parametrize("directions", [1, 2])
def test_states_of_both_directions_and_their_gradient_equal_the_definition(directions, monkeypatch):
    """Time in segments, and modes that fill no tile."""
    monkeypatch.setattr(pallas_gpu, "SHORTEST_SEGMENT", 6)
    a, drive, w = coefficient(3), draw(2, 19, 2, 3), draw(2, 19, directions, 2, 3, seed=4)

    def by_definition(a, drive):
        drive = drive[:, :, 0] + 1j * drive[:, :, 1]
        ways = [recurrence.scan(a, drive), jnp.flip(recurrence.scan(a, jnp.flip(drive, 1)), 1)][:directions]
        return jnp.stack([jnp.stack([x.real, x.imag], -2) for x in ways], 2)

    def here(a, drive):
        return pallas_gpu.both(a, drive, directions, interpret=True)

    def with_gradient(f):
        x, pull = jax.vjp(f, a, drive)
        return [x, *pull(jnp.asarray(w))]

    found, expected = jax.jit(lambda: [with_gradient(f) for f in (here, by_definition)])()
    close(found, expected)


def test_kernel_and_its_gradient_map_over_a_further_axis():
    a, drive = coefficient(3), draw(4, 2, 5, 2, 3)

    def gradient(drive):
        return jax.grad(lambda drive: jnp.sum(pallas_gpu.both(a, drive, 2, interpret=True) ** 2))(drive)

    found, expected = jax.jit(lambda: (jax.vmap(gradient)(drive), jax.lax.map(gradient, drive)))()
    close([found], [expected])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, (11, 4)])
def test_chunks_of_one_sample_by_states_equal_the_scan_form_gradients_included(bidirectional, lengths):
    layer = ptd.S5(3, 6, bidirectional=bidirectional)
    params = {n: jnp.asarray(v) for n, v in ptd.initialize(layer, np.random.default_rng(0), init="legs").items()}
    u, w, lengths = jnp.asarray(draw(2, 11, 3)), draw(2, 11, 3, seed=3), None if lengths is None else np.array(lengths)
    call = {"lengths": lengths, "step_scale": 0.5}

    def loss(apply, params, u):
        y = apply(params, u)
        return jnp.sum(w * y), y

    by_states = dataclasses.replace(
        kernels.table("gpu", "pallas", 1), both_ways=functools.partial(pallas_gpu.both, interpret=True)
    )

    def here(params, u):
        return layer.apply(params, u, form="chunked", kernels=by_states, **call)

    def plain(params, u):
        return layer.apply(params, u, form="scan", **call)

    found, expected = jax.jit(
        lambda: [jax.grad(lambda *x, f=f: loss(f, *x), (0, 1), has_aux=True)(params, u) for f in (here, plain)]
    )()
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-10, atol=1e-12), found, expected)


@pytest.mark.parametrize(("call", "by_states"), [
    ({}, True), ({"lengths": np.array([3, 4]), "step_scale": 2.0}, True),
    ({"form": "scan"}, False), ({"return_state": True}, False), ({"state": np.zeros((2, 3, 2))}, False),
])  # fmt: skip
def test_states_of_both_directions_serve_calls_from_rest_that_ask_for_no_state(call, by_states):
    class Called(Exception):
        pass

    def both_ways(*_):
        raise Called

    layer = ptd.S5(3, 6)
    params = {n: jnp.asarray(v) for n, v in ptd.initialize(layer, np.random.default_rng(0), init="legs").items()}
    table = dataclasses.replace(ptd.kernels.PORTABLE, chunk_length=lambda layer, L: 1, both_ways=both_ways)
    run = functools.partial(
        layer.apply, params, jnp.asarray(draw(2, 9, 3)), kernels=table, **{"form": "chunked"} | call
    )
    if by_states:
        with pytest.raises(Called):
            run()
    else:
        run()


def test_gpu_kernel_takes_narrow_drives_and_keeps_the_state_wide():
    a, drive = coefficient(4).astype(np.complex64), jnp.asarray(draw(2, 40, 2, 2, 4), jnp.bfloat16)
    start = np.zeros((2, 2, 2, 4), np.float32)
    entering, final = pallas_gpu.carries(a, drive, start, interpret=True)
    expected, end = chunks.carries(a, np.asarray(drive, np.float32))
    assert (entering.dtype, final.dtype) == (jnp.bfloat16, jnp.float32)
    assert_allclose(final, end, rtol=0, atol=1e-5 * np.abs(end).max())
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert_allclose(entering.astype(jnp.float32), expected, rtol=eps, atol=1e-5)


def test_gpu_kernel_and_its_gradient_lower_to_triton():
    """No GPU is needed to see whether Pallas accepts every operation of the kernel."""

    def loss(a, drive, start):
        entering, final = pallas_gpu.carries(a, drive, start)
        return jnp.sum(entering) + jnp.sum(final)

    arguments = [jnp.asarray(x, t) for x, t in ((coefficient(24), "complex64"), (draw(2, 900, 2, 2, 24), "float32"))]
    gradient = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arguments, jnp.zeros((2, 2, 2, 24), jnp.float32))
    text = gradient.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 4  # ends and states, from both sides


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_of_both_directions_lower_to_triton(dtype):
    a, drive = jnp.asarray(coefficient(24), "complex64"), jnp.zeros((2, 900, 2, 24), dtype)
    gradient = jax.jit(jax.grad(lambda *x: jnp.sum(pallas_gpu.both(*x, 2).astype("float32")), (0, 1)))
    text = gradient.trace(a, drive).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 4  # ends and states, from both sides


@pytest.mark.parametrize("shape", [(5,), (2, 1, 5)])
def test_tpu_scan_and_its_gradient_equal_the_loop(shape, monkeypatch):
    """Several blocks of time with a rest, in single precision, which is what the registers hold."""
    monkeypatch.setattr(pallas_tpu, "TIME", 8)
    a, rows = coefficient(*shape).astype(np.complex64), (*shape[:-2], 3, 2, 5)
    drive, state, w = (draw(*s).astype(np.float32) for s in ((19, *rows), rows, (19, *rows)))

    def loss(scan, *arguments):
        x = scan(*arguments)
        return jnp.sum(w * x), x

    def here(*x):
        return pallas_tpu.scan(*x, interpret=pltpu.InterpretParams())

    gradients = [jax.jit(jax.grad(lambda *x, f=f: loss(f, *x), (0, 1, 2), has_aux=True)) for f in (here, loop)]
    (found, x), (expected, y) = (g(a, drive, state) for g in gradients)
    for u, v in zip([*found, x], [*expected, y], strict=True):
        assert_allclose(u, v, rtol=0, atol=1e-5 * np.abs(v).max())


def test_tpu_kernel_lowers_to_mosaic():
    arguments = jnp.ones(130, "complex64"), jnp.zeros((700, 9, 2, 130), "float32"), jnp.zeros((9, 2, 130), "float32")
    gradient = jax.jit(jax.grad(lambda *x: jnp.sum(pallas_tpu.scan(*x)), (0, 1, 2)))
    with jax.enable_x64(False):
        text = gradient.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("custom_call @tpu_custom_call") == 2
