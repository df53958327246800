"""Run by test_jax_sharding in a process of its own, which sees eight devices; by hand on the GPUs of a machine, too."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

import ptd
from ptd_jax import JaxBackend, backend, kernels, pallas_chunks, pallas_gpu, sharding, speed

L = 32

ON_CPU = jax.default_backend() == "cpu"

# The GPU kernels; on a CPU what they mean.
KERNELS = [
    functools.partial(f, interpret=ON_CPU)
    for f in (pallas_gpu.carries, pallas_gpu.scan, pallas_gpu.both, pallas_chunks.per_feature_chunks)
]


@functools.cache
def grid() -> Mesh:
    """Eight devices, two by four, or two, one by two."""
    return Mesh(np.array(jax.devices()).reshape(max(1, jax.device_count() // 4), -1), ("data", "time"))


def compare(name: str, found, expected) -> None:
    """Equal up to rounding, in double precision or in single."""

    def each(x, y) -> None:
        rtol, atol = (1e-9, 1e-11) if y.dtype == np.float64 else (1e-4, 1e-5)
        assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=name)

    jax.tree.map(each, found, expected)


def parameters(description, **options) -> dict:
    rng = np.random.default_rng(0)
    new = description.initialize if isinstance(description, ptd.SequenceModel) else None
    drawn = new(rng, init="legs") if new else ptd.initialize(description, rng, init="legs", **options)
    return {name: jnp.array(value, float) for name, value in drawn.items()}


def placed(u, *axes):
    return jax.device_put(u, NamedSharding(grid(), PartitionSpec(*axes)))


def gradients_equal(layer, lengths) -> None:
    """Output and every gradient, batch and time sharded, equal those on one device."""
    params, u = parameters(layer), np.random.default_rng(1).standard_normal((2, L, layer.d_model))
    w = np.random.default_rng(2).standard_normal(u.shape)

    def loss(params, u, run):
        y = run(layer, params, u, lengths=lengths)
        return jnp.sum(w * y), y

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    across = functools.partial(sharding.apply, mesh=grid(), axis="time")
    u_sharded = placed(u, "data", "time")
    found = gradient(params, u_sharded, across)
    compare(layer.kind, found, gradient(params, u, backend.apply))
    assert found[1].sharding.is_equivalent_to(u_sharded.sharding, u.ndim) or lengths is not None


def state_is_carried() -> None:
    """A state enters the first device and the final one leaves the last."""
    layer = ptd.S5(3, 4)
    params, rng = parameters(layer), np.random.default_rng(3)
    u, state = rng.standard_normal((2, L, 3)), jnp.asarray(rng.standard_normal(layer.state_shape((2,))))
    call = {"state": state, "return_state": True, "step_scale": 0.5}
    found = jax.jit(lambda u: sharding.apply(layer, params, u, mesh=grid(), axis="time", **call))(
        placed(u, None, "time")
    )
    compare("state", found, backend.apply(layer, params, jnp.asarray(u), **call))


def model_is_sequence_parallel() -> None:
    """A model whose layers run across devices equals the model on one."""
    model = ptd.SequenceModel(ptd.S5(4, 4, bidirectional=True), 2, 3, 5, norm="batch")
    params, u = parameters(model), np.random.default_rng(4).standard_normal((2, L, 3))
    run = functools.partial(sharding.apply, mesh=grid(), axis="time")
    found = jax.jit(lambda u: model.apply(params, u, run=run))(placed(u, "data", "time"))
    compare("model", found, backend.apply_model(model, params, jnp.asarray(u)))


def batch_is_data_parallel() -> None:
    """A batch sharded over devices needs placing alone."""
    layer = ptd.S4D(3, 4, bidirectional=True)
    params, u = parameters(layer), np.random.default_rng(5).standard_normal((4, 9, 3))
    u_sharded = placed(u, "data")
    found = backend.apply(layer, params, u_sharded)
    assert found.sharding.is_equivalent_to(u_sharded.sharding, u.ndim)
    compare("data parallel", found, backend.apply(layer, params, jnp.asarray(u)))


def kernels_run_where_their_rows_lie(layer, chunk) -> None:
    """Output and gradients with the GPU kernels, batch sharded: as without them on one device, nothing gathered."""
    params, u = parameters(layer), np.random.default_rng(6).standard_normal((8, L, layer.d_model), np.float32)

    def loss(params, u, run):
        y = run(layer, params, u)
        return jnp.sum(jnp.sin(y)), y

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    u_sharded, run = placed(u, ("data", "time")), JaxBackend("gpu", "kernels", chunk=chunk).apply
    compiled = gradient.lower(params, u_sharded, run).compile()
    compare(layer.kind, compiled(params, u_sharded), gradient(params, u, backend.apply))
    assert moved_whole(compiled) == set()


def moved_whole(compiled) -> set[str]:
    """The ways in which a program moves more between devices than sums."""
    text = compiled.as_text()
    assert "all-reduce" in text
    return {word for word in ("all-gather", "all-to-all", "collective-permute") if f" {word}" in text}


def states_may_enter_kernels_across_devices(layer, L) -> None:
    """The GPU kernels within sequence parallelism, where the batch is sharded too; none runs a stretch as a whole."""
    params, u = parameters(layer), np.random.default_rng(7).standard_normal((2, L, 3))
    across = functools.partial(sharding.apply, layer, params, mesh=grid(), axis="time", recurrence="kernels")
    compare("kernels across", jax.jit(across)(placed(u, "data", "time")), backend.apply(layer, params, jnp.asarray(u)))


def two_devices_are_measured() -> None:
    """On sizes that say nothing about speed; a step on one device is taken to last a second a sequence."""
    speed.BUDGET, measured = 0.0, speed._training_step
    speed._training_step = lambda backend, row, steps, mesh=None: (
        measured(backend, row, steps, mesh=mesh) if mesh else (float(row.batch), 0.0, 0)
    )
    small = dataclasses.replace(speed.TRAINING_STEPS["Text"], batch=2, length=16, layers=1, H=4, P=4, blocks=1)
    split, kept, sequence = speed.two_devices(backend, rows={"Text": small}, steps=1, layer=ptd.S5(2, 4), L=L)
    assert split.label == "Text 2 x 16, data parallel on two devices, float32, TF32 products"
    assert kept.label == "Text 4 x 16, data parallel on two devices, batch of a device kept, float32, TF32 products"
    assert (split.other, kept.other) == (2.0, 4.0)
    assert "half the batch on one device takes 1000.00 ms" in split.note
    assert split.gibibytes < kept.gibibytes
    assert sequence.label == f"one sequence of {L} across two devices, forward + backward, recurrence loop"


def register_kernels() -> None:
    """The recurrence "kernels", and products in full: a GPU rounds their factors otherwise."""
    pallas_gpu.UNROLL = 1  # shorter programs: what is unrolled is tested elsewhere
    pallas_chunks.SHORTEST_SEGMENT = 1
    kernels.RECURRENCES["kernels"] = lambda: kernels.Recurrence(*KERNELS)
    jax.config.update("jax_default_matmul_precision", "highest")


if __name__ == "__main__":
    register_kernels()
    with jax.enable_x64(True):
        gradients_equal(ptd.S5(3, 4, bidirectional=True), None)
        gradients_equal(ptd.S4D(3, 4), np.array([L, 13]))
        state_is_carried()
        model_is_sequence_parallel()
        batch_is_data_parallel()
        states_may_enter_kernels_across_devices(ptd.S5(3, 4, bidirectional=True), L)
        states_may_enter_kernels_across_devices(ptd.S4D(3, 4, bidirectional=True), 4 * 16)
    kernels_run_where_their_rows_lie(ptd.S5(3, 4, bidirectional=True), 1)
    kernels_run_where_their_rows_lie(ptd.S4D(3, 4), 4)
    kernels_run_where_their_rows_lie(ptd.S4D(3, 4, bidirectional=True), 16)
    if ON_CPU:
        two_devices_are_measured()
    print("equal")
