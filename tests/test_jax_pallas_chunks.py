"""The Pallas kernel of layers with a system per feature, in interpret mode, against the chunked form of core."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose

import ptd
from ptd import chunks
from ptd.chunks import ChunkSystem
from ptd_jax import JaxBackend, kernels, pallas_chunks

fused = functools.partial(pallas_chunks.per_feature_chunks, interpret=True)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def drawn(D: int, batch: tuple[int, ...], L: int, *, H: int = 2, M: int = 3, T: int = 16) -> tuple:
    """u, the matrices of a system that need be no layer's, and a state."""
    rng = np.random.default_rng(0)
    decay = 0.9 * np.exp(1j * rng.standard_normal((H, M)))
    shapes = (H, T, D * 2 * M), (H, D * 2 * M, T), (H, T, T)
    matrices = (rng.standard_normal(shape) for shape in shapes)
    system = ChunkSystem(*(jnp.asarray(x) for x in (decay, *matrices)))
    return jnp.asarray(rng.standard_normal((*batch, L, H))), system, jnp.asarray(rng.standard_normal((H, *batch, 2, M)))


def in_parts(u, system, state):
    """Outputs and final states by core, part by part."""
    (H, T, width), M = system.into.shape, system.decay.shape[-1]
    layer = ptd.S4D(H, 2 * M, bidirectional=width == 4 * M)
    v = chunks.split(u, T)
    entering, final = chunks.carries(system.decay, layer.into_states(v, system.into), state)
    return chunks.join(layer.out_of_chunks(v, entering, system), u.shape[-2]), final


def with_gradients(run, u, system, state):
    """Outputs, final states and the gradients by every argument for random cotangents."""
    found, pull = jax.vjp(lambda u, parts, state: run(u, ChunkSystem(*parts), state), u, system, state)
    rng = np.random.default_rng(1)
    return found, pull(tuple(jnp.asarray(rng.standard_normal(x.shape)) for x in found))


def compare(u, system, state) -> None:
    runs = jax.jit(lambda *arguments: [with_gradients(run, *arguments) for run in (fused, in_parts)])
    close(*runs(u, tuple(vars(system).values()), state))


def close(found, expected) -> None:
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=0, atol=1e-12 * np.abs(y).max()), found, expected)


@pytest.mark.parametrize(
    ("D", "batch", "L", "from_rest"),
    [(1, (), 37, False), (2, (2, 1), 64, False), (2, (18,), 19, True)],
    ids=[
        "one way, a rest of a chunk",
        "both ways, batch axes, segments",
        "more rows than a small tile, from rest",
    ],
)
def test_outputs_states_and_every_gradient_equal_the_parts(D, batch, L, from_rest, monkeypatch):
    monkeypatch.setattr(pallas_chunks, "SHORTEST_SEGMENT", 1)  # a rest of three chunks stays whole, four are cut
    u, system, state = drawn(D, batch, L)
    compare(u, system, None if from_rest else state)


def test_a_layer_runs_by_it_and_ends_in_the_same_state():
    layer = ptd.S4D(2, 6, bidirectional=True)
    params = {n: jnp.asarray(v) for n, v in ptd.initialize(layer, np.random.default_rng(0), init="legs").items()}
    u = jnp.asarray(np.random.default_rng(2).standard_normal((2, 32, 2)))
    calls = []

    def counted(*call):
        calls.append(call)
        return fused(*call)

    parts = kernels.table("cpu", "loop", 16)
    tables = parts, dataclasses.replace(parts, per_feature_chunks=counted)
    close(*jax.jit(lambda: [layer.apply(params, u, return_state=True, kernels=table) for table in tables])())
    assert len(calls) == 1


def test_narrow_signals_keep_their_states_wide():
    u, system, state = drawn(2, (2,), 40)
    single = [jnp.asarray(x, "complex64" if jnp.iscomplexobj(x) else "float32") for x in vars(system).values()]
    u = u.astype("bfloat16")
    y, final = jax.jit(lambda: fused(u, ChunkSystem(*single), state.astype("float32")))()
    expected, end = jax.jit(lambda: in_parts(u.astype("float64"), system, state))()
    assert (y.dtype, final.dtype) == (jnp.bfloat16, jnp.float32)
    # Factors and each direction's share of an output are rounded to 8 bits; errors of many terms average out.
    assert_allclose(y.astype("float64"), expected, rtol=0, atol=2**-7 * np.abs(expected).max())
    assert_allclose(final, end, rtol=0, atol=2**-7 * np.abs(end).max())


def test_what_it_does_not_take_is_left_to_the_parts():
    u, system, _ = drawn(1, (2,), 40)
    assert pallas_chunks.per_feature_chunks(u, system, None) is None  # double precision
    assert fused(u, dataclasses.replace(system, decay=jnp.zeros((2, 2, 3, 2, 3))), None) is None  # a dense transition
    assert fused(u[:0], system, None) is None
    assert fused(u, drawn(1, (2,), 40, T=20)[1], None) is None


def test_it_belongs_to_the_recurrence_of_first_gradients_and_is_forced_with_it():
    gpu = JaxBackend("gpu")
    assert gpu.training.kernels.per_feature_chunks is pallas_chunks.per_feature_chunks
    assert gpu.kernels.per_feature_chunks is None
    assert JaxBackend("gpu", "tree").training.kernels.per_feature_chunks is None


class Device:
    """A GPU as far as its shared memory goes, in KiB; one of which XLA says nothing has None."""

    def __init__(self, kib: int | None):
        if kib is not None:
            self.shared_memory_per_block_optin = kib * 1024


@pytest.fixture
def gpu_with(monkeypatch):
    def set_to(kib: int | None) -> None:
        monkeypatch.setattr(jax, "local_devices", lambda backend: [Device(kib)])

    return set_to


#: By chunk length, modes, dtype and setting of products: KiB that Triton 3.6 gives a program of the gradient, for
#: devices with 163 KiB a program (sm_80); the same for those with 99 (sm_86, sm_120) at T = 64.
TAKEN = {
    (64, 64, "float32", "tensorfloat32"): 128,
    (64, 32, "float32", "tensorfloat32"): 96,
    (64, 16, "float32", "tensorfloat32"): 80,
    (32, 64, "float32", "tensorfloat32"): 68,
    (16, 64, "float32", "tensorfloat32"): 41,
    (64, 64, "float32", "highest"): 176,
    (64, 32, "float32", "highest"): 108,
    (64, 16, "float32", "highest"): 76,
    (32, 64, "float32", "highest"): 84,
    (64, 64, "bfloat16", "tensorfloat32"): 64,
    (64, 32, "bfloat16", "tensorfloat32"): 48,
}


@pytest.mark.parametrize(("case", "kib"), TAKEN.items(), ids=str)
def test_shared_memory_is_never_less_than_what_the_compiler_takes(case, kib):
    T, K, dtype, products = case
    with jax.default_matmul_precision(products):
        assert kib * 1024 <= pallas_chunks.shared_memory(T, K, dtype) <= 2 * kib * 1024


@pytest.mark.parametrize(
    ("kib", "modes", "products", "reason"),
    [
        (227, 64, "highest", None),
        (163, 64, "highest", "196608 bytes of shared memory a program, not 166912"),
        (163, 64, "tensorfloat32", None),
        (99, 64, "tensorfloat32", "131072 bytes of shared memory a program, not 101376"),
        (99, 32, "tensorfloat32", None),
        (None, 64, "highest", None),
    ],
)
def test_where_it_does_not_fit_the_parts_run_and_the_backend_says_why(kib, modes, products, reason, gpu_with):
    gpu_with(kib)
    layer, gpu = ptd.S4D(2, 2 * modes), JaxBackend("gpu").training
    params = {n: jnp.asarray(v, "float32") for n, v in ptd.initialize(layer, np.random.default_rng(0)).items()}
    u = jnp.zeros((1, 64, 2), "float32")
    with jax.default_matmul_precision(products):
        assert gpu.lacking(layer, 64) == reason
        program = jax.make_jaxpr(lambda u: layer.apply(params, u, kernels=gpu.kernels))(u)
    assert ("ptd_chunks" in str(program)) == (reason is None)


def test_what_else_keeps_chunks_from_the_kernel_is_said_too():
    gpu = JaxBackend("gpu")
    assert gpu.lacking(ptd.S4D(2, 4), 64) == "recurrence='pallas', not 'tree'"
    assert gpu.training.lacking(ptd.S5(2, 4), 64) == "an S4D or DSS layer, not s5"
    assert gpu.training.lacking(ptd.S4D(2, 4), 20) == "chunks of 16, 32, 64 samples, not 20"
    assert gpu.training.lacking(ptd.DSS(2, 65), 64) == "at most 64 modes, not 65"
    assert gpu.training.lacking(ptd.DSS(2, 64), 64, "float64") == "states of float32, not float64"
    assert gpu.training.lacking(ptd.DSS(2, 64), 64) is None


def test_programs_take_few_rows_where_many_would_be_empty_or_crowd_out_others():
    fast, exact = lax.DotAlgorithmPreset.TF32_TF32_F32, lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    assert [pallas_chunks._rows(N, fast) for N in (1, 17, 32, 500)] == [16, 64, 64, 64]
    assert pallas_chunks._rows(500, exact) == 16


@pytest.mark.parametrize("setting", ["highest", "tensorfloat32"])
def test_products_of_single_precision_are_rounded_only_where_the_caller_allows_it(setting):
    presets = {
        "highest": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
        "tensorfloat32": lax.DotAlgorithmPreset.TF32_TF32_F32,
    }
    with jax.default_matmul_precision(setting):
        assert pallas_chunks._precision(jnp.float32, False) is presets[setting]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mapped", [False, True])
def test_it_and_its_gradient_lower_to_triton(dtype, mapped):
    """No GPU is needed to see whether Pallas accepts every operation of the kernel."""
    layer = ptd.S4D(3, 40, bidirectional=True)
    params = {n: jnp.asarray(v, "float32") for n, v in ptd.initialize(layer, np.random.default_rng(0)).items()}
    table = kernels.table("gpu", "pallas")

    def loss(params, u):
        return jnp.sum(layer.apply(params, u, form="chunked", kernels=table).astype("float32"))

    gradient = jax.grad(loss, (0, 1))
    gradient = jax.vmap(gradient, (None, 0)) if mapped else gradient
    with jax.enable_x64(False):
        u = jnp.zeros((2,) * mapped + (5, 700, 3), dtype)
        text = jax.jit(gradient).trace(params, u).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 2  # forwards and back
