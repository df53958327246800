"""Loops as users of torch, flax nnx and mlx write them, over one model and batch."""

from __future__ import annotations

import jax.numpy as jnp
import mlx.core as mx
import mlx.nn
import mlx.utils
import numpy as np
import optax
import torch
from flax import nnx

import ptd

RULE = ptd.Optimizer(lr=1e-2, ssm_lr=1e-3, total_steps=100, frozen=("log_step",))
U = np.random.default_rng(0).standard_normal((5, 9, 3)).astype(np.float32)
TARGETS = np.arange(5) % 4


class Torch:
    """What a torch user writes."""

    be = ptd.backend("torch").on("cpu")

    def module(self, description, params):
        torch.manual_seed(0)
        return self.be.module(description, params)

    def loss(self, module):
        return torch.nn.functional.cross_entropy(module(torch.tensor(U)), torch.tensor(TARGETS))

    def gradients(self, module):
        self.loss(module).backward()
        return {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}

    def train(self, module, steps):
        optimizer, losses = torch.optim.AdamW(self.be.parameter_groups(module, RULE)), []
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, RULE.schedule)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss(module)
            loss.backward()
            optimizer.step()
            rates.step()
            losses.append(loss.item())
        return losses

    def compiled(self, module):
        call = torch.compile(module, backend="aot_eager")
        return lambda: call(torch.tensor(U))

    def copied(self, module, folder):
        torch.save(module.state_dict(), folder / "state")
        other = self.module(module.description, {n: 0 * value for n, value in module.leaves().items()})
        other.load_state_dict(torch.load(folder / "state"))
        return other


class Jax:
    """What a user of flax nnx writes."""

    be = ptd.backend("jax")

    def module(self, description, params):
        return self.be.module(description, params, rngs=nnx.Rngs(0))

    def loss(self, module):
        return optax.softmax_cross_entropy_with_integer_labels(module(jnp.asarray(U)), jnp.asarray(TARGETS)).mean()

    def gradients(self, module):
        return _flat(nnx.grad(self.loss)(module))

    def train(self, module, steps):
        optimizer = nnx.Optimizer(module, self.be.parameter_groups(module, RULE), wrt=nnx.Param)

        @nnx.jit
        def step(module, optimizer):
            loss, gradient = nnx.value_and_grad(self.loss)(module)
            optimizer.update(module, gradient)
            return loss

        return [float(step(module, optimizer)) for _ in range(steps)]

    def compiled(self, module):
        call = nnx.jit(lambda module: module(jnp.asarray(U)))
        return lambda: call(module)

    def copied(self, module, folder):
        return nnx.merge(*nnx.split(module, nnx.Param, ...))


class Mlx:
    """What an mlx user writes."""

    be = ptd.backend("mlx")

    def module(self, description, params):
        mx.random.seed(0)
        return self.be.module(description, params)

    def loss(self, module):
        return mlx.nn.losses.cross_entropy(module(mx.array(U)), mx.array(TARGETS), reduction="mean")

    def gradients(self, module):
        _, found = mlx.nn.value_and_grad(module, self.loss)(module)
        return {name: np.array(value) for name, value in mlx.utils.tree_flatten(found)}

    def train(self, module, steps):
        optimizer, losses = self.be.parameter_groups(module, RULE), []
        gradient = mlx.nn.value_and_grad(module, self.loss)
        for _ in range(steps):
            loss, found = gradient(module)
            optimizer.update(module, found)
            losses.append(loss.item())
        return losses

    def compiled(self, module):
        state = [module.state, mx.random.state]
        call = mx.compile(module.__call__, inputs=state, outputs=state)
        return lambda: call(mx.array(U))

    def copied(self, module, folder):
        module.save_weights(str(folder / "weights.safetensors"))
        other = self.module(module.description, {n: 0 * value for n, value in module.leaves().items()})
        return other.load_weights(str(folder / "weights.safetensors"))


def _flat(state):
    return {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(state)}
