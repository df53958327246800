"""An S5 layer inside an equinox module, trained for a few steps: the leaves are a dict field like any other.

pip install "ptd[jax]" equinox && python examples/with_equinox.py
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ptd

BACKEND = ptd.backend("jax")


class StateSpace(eqx.Module):
    """Any ptd layer as an equinox module."""

    leaves: dict[str, jax.Array]
    layer: ptd.Layer = eqx.field(static=True)

    def __init__(self, layer: ptd.Layer, seed: int, **options: Any):
        drawn = ptd.initialize(layer, np.random.default_rng(seed), **options)
        self.layer = layer
        self.leaves = {name: jnp.asarray(value, jnp.float32) for name, value in drawn.items()}

    def __call__(self, u: jax.Array, **call: Any) -> Any:
        """The output on whole sequences (..., L, H); arguments as ptd.Layer.apply."""
        return BACKEND.apply(self.layer, self.leaves, u, **call)


def main(steps: int = 60) -> list[float]:
    """Learn to echo a sequence five steps later; return the losses."""
    model = StateSpace(ptd.S5(4, 16), seed=0, init="ptd-closed", dt_min=0.05, dt_max=0.5)
    u = jax.random.normal(jax.random.key(0), (8, 64, 4))
    target = jnp.pad(u, ((0, 0), (5, 0), (0, 0)))[:, :64]
    optimizer = optax.adam(2e-2)

    @eqx.filter_jit
    def step(model: StateSpace, state: Any) -> tuple[StateSpace, Any, jax.Array]:
        loss, gradient = eqx.filter_value_and_grad(lambda model: jnp.mean((model(u) - target) ** 2))(model)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, loss

    state, losses = optimizer.init(eqx.filter(model, eqx.is_array)), []
    for _ in range(steps):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    print("loss: {:.3f} -> {:.3f}".format(*np.take(main(), [0, -1])))
