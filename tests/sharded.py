"""Run by test_jax_sharding in a process of its own, which sees eight devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

import ptd
from ptd_jax import backend, sharding

L = 32


@functools.cache
def grid() -> Mesh:
    """Eight devices, two by four; no test process but this script's has as many."""
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "time"))


def compare(name: str, found, expected) -> None:
    """Equal up to rounding in double precision."""
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-9, atol=1e-11, err_msg=name), found, expected)


def parameters(description, **options) -> dict:
    rng = np.random.default_rng(0)
    new = description.initialize if isinstance(description, ptd.SequenceModel) else None
    drawn = new(rng, init="legs") if new else ptd.initialize(description, rng, init="legs", **options)
    return {name: jnp.asarray(value) for name, value in drawn.items()}


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
    found = gradient(params, placed(u, "data", "time"), across)
    compare(layer.kind, found, gradient(params, u, backend.apply))
    assert found[1].sharding.spec[:2] == ("data", "time") or lengths is not None


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
    found = backend.apply(layer, params, placed(u, "data"))
    assert found.sharding.spec[0] == "data"
    compare("data parallel", found, backend.apply(layer, params, jnp.asarray(u)))


if __name__ == "__main__":
    with jax.enable_x64(True):
        gradients_equal(ptd.S5(3, 4, bidirectional=True), None)
        gradients_equal(ptd.S4D(3, 4), np.array([L, 13]))
        state_is_carried()
        model_is_sequence_parallel()
        batch_is_data_parallel()
    print("equal")
