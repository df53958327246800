"""A trained model on a stream: one sample in, one output out, the state carried; equal to the run over the whole.

    pip install "ptd[mlx]" && python examples/streaming_mlx.py

The model learns to recall its input of DELAY samples ago, from whole sequences in parallel. Then it is fed sample by
sample, as a sensor would feed it: time and memory per sample do not grow with what has gone by.
"""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

import ptd

DELAY = 8


def recall(rng: np.random.Generator, batch: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Noise (batch, length, 1), and the same delayed by DELAY samples, zero before."""
    u = rng.standard_normal((batch, length, 1)).astype(np.float32)
    return u, np.concatenate([np.zeros_like(u[:, :DELAY]), u[:, :-DELAY]], axis=1)


def train(steps: int = 300, seed: int = 0) -> tuple[ptd.SequenceModel, dict[str, NDArray], float]:
    """The model, its trained leaves, and the mean squared error of the last step; 1 is what guessing gives."""
    rng, be = np.random.default_rng(seed), ptd.backend("mlx")
    model = ptd.SequenceModel(ptd.S5(16, 32), n_layers=1, d_input=1, d_output=1, norm="none", pooling="none")
    leaves = model.initialize(rng, init="ptd-closed", dt_min=0.01, dt_max=0.3)
    learner = be.learner(model, leaves, ptd.Optimizer(lr=1e-2, ssm_lr=1e-2, total_steps=steps), seed)
    for _ in range(steps):
        error = learner.step(*recall(rng, 16, 64))
    return model, learner.parameters(), float(error)


def stream(module: Any, u: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outputs for u (length, 1), fed one sample at a time."""
    step, state, outputs = mx.compile(module.step), module.initial_state(), []
    for sample in u:
        y, state = step(mx.array(sample), state)
        mx.eval(y, state)
        outputs.append(np.array(y))
    return np.stack(outputs)


def main(steps: int = 300, length: int = 500) -> float:
    """Train, stream, compare; the largest difference between the streamed and the parallel outputs."""
    model, leaves, error = train(steps)
    module = ptd.backend("mlx").module(model, leaves).eval()
    u, target = (part[0] for part in recall(np.random.default_rng(1), 1, length))
    whole = np.array(module(mx.array(u)))
    stream(module, u[:1])  # compiles
    begin = time.perf_counter()
    streamed = stream(module, u)
    rate = length / (time.perf_counter() - begin)
    difference = float(np.abs(streamed - whole).max())
    print(f"trained to a squared error of {error:.3f}; on a new stream {np.mean((streamed - target) ** 2):.3f}")
    print(f"{rate:.0f} samples a second; largest difference from the parallel run {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
