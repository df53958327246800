"""An S4D layer inside a flax linen module, with the optimiser groups that state-space leaves want.

pip install "ptd[jax]" && python examples/with_linen.py
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ptd

BACKEND = ptd.backend("jax")


class StateSpace(nn.Module):
    """Any ptd layer as a linen module; every leaf is a parameter of its own name."""

    layer: ptd.Layer
    init: str = "legs"

    @nn.compact
    def __call__(self, u: jax.Array, **call: Any) -> Any:
        """The output on whole sequences (..., L, H); arguments as ptd.Layer.apply."""

        def draw(key: jax.Array, name: str) -> jax.Array:
            # One seed for all leaves: they belong together.
            drawn = ptd.initialize(self.layer, np.random.default_rng(0), init=self.init)
            return jnp.asarray(drawn[name], jnp.float32)

        leaves = {name: self.param(name, draw, name) for name in self.layer.shapes()}
        return BACKEND.apply(self.layer, leaves, u, **call)


class Classifier(nn.Module):
    """Two classes from the mean over time."""

    @nn.compact
    def __call__(self, u: jax.Array) -> jax.Array:
        """Logits (..., 2)."""
        return nn.Dense(2)(nn.gelu(StateSpace(ptd.S4D(u.shape[-1], 16))(u)).mean(-2))


def main(steps: int = 40) -> list[float]:
    """Tell a slow wave from a fast one; return the losses."""
    time, label = jnp.arange(64.0), jnp.arange(16) % 2
    wave = jnp.sin(time * (0.2 + 0.6 * label[:, None]) + jnp.arange(16.0)[:, None])[..., None]
    model = Classifier()
    params = model.init(jax.random.key(0), wave)
    rule = ptd.Optimizer(lr=2e-2, ssm_lr=1e-3, weight_decay=0.01, total_steps=steps)
    optimizer = BACKEND.parameter_groups(params, rule)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, wave), label).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    print("loss: {:.3f} -> {:.3f}".format(*np.take(main(), [0, -1])))
