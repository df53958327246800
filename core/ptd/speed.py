"""What every backend's speed measurements share: a figure, a clock, and the training steps of the S5 recipes.

A backend measures in its module `speed`: FIGURES maps a name to a function of the backend that yields Figures.
``ptd bench --backend NAME`` runs them. Ratios compare within one run on one device unless a figure says otherwise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .layers import S5
from .model import SequenceModel
from .optimization import Optimizer


@dataclass(frozen=True)
class Figure:
    """One measured time, and what it is compared with.

    Attributes:
        label: what was measured, with its sizes.
        seconds: median of many runs after a warm-up.
        other: seconds of what it is compared with, or None.
        source: what that is, and where its seconds come from.
        target: the least ratio other / seconds that the project asks for, or None.
        fraction: of the device's measured copy bandwidth, counting the bytes that have to move, or None.
        gibibytes: peak device memory, or None.
        note: what else there is to say, compile seconds for example.
    """

    label: str
    seconds: float
    other: float | None = None
    source: str = ""
    target: float | None = None
    fraction: float | None = None
    gibibytes: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times faster than the other."""
        return None if self.other is None else self.other / self.seconds


def median_seconds(run: Callable[[], Any], finish: Callable[[], Any], *, budget: float = 1.0, batch: int = 1) -> float:
    """Median wall time of run(), each sample timed over batch runs until finish() returns.

    Args:
        run: starts the work.
        finish: waits for all started work.
        budget: seconds to spend, after one warm-up run of each shape has been made by the caller.
        batch: runs per sample; more than one where a single run is shorter than the launch of the work.
    """
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < 3 or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        for _ in range(batch):
            run()
        finish()
        samples.append((time.perf_counter() - start) / batch)
        if len(samples) >= 200:
            break
    return statistics.median(samples)


@dataclass(frozen=True)
class TrainingStep:
    """One training step of an S5 recipe of the Long Range Arena (Smith et al. 2023, table 11).

    Attributes:
        batch, length: of the input; for Retrieval both documents of each pair.
        layers, H, P, blocks: of the model; P counts real-equivalent states.
        activation, dropout: of the blocks.
        tokens: vocabulary, or 0 for one real feature.
        classes: outputs.
        original_ms: a step of the original code on one H200 (JAX, float32 with TF32 products).
    """

    batch: int
    length: int
    layers: int
    H: int
    P: int
    blocks: int
    activation: str
    dropout: float
    tokens: int
    classes: int
    original_ms: float

    def model(self) -> SequenceModel:
        """The model of the recipe, bidirectional, batch norm before each layer."""
        return SequenceModel(
            S5(self.H, self.P, blocks=self.blocks, bidirectional=True),
            n_layers=self.layers,
            d_input=self.tokens or 1,
            d_output=self.classes,
            encoder="embedding" if self.tokens else "linear",
            norm="batch",
            activation=self.activation,
            dropout=self.dropout,
            tie_dropout=True,
        )

    def optimizer(self) -> Optimizer:
        """AdamW with the recipes' two rates."""
        return Optimizer(lr=1e-3, ssm_lr=1e-3, weight_decay=0.05, total_steps=10_000)


TRAINING_STEPS = {
    "ListOps": TrainingStep(50, 2048, 8, 128, 16, 8, "half_glu2", 0.0, 18, 10, 10.32),
    "Text": TrainingStep(50, 4096, 6, 256, 192, 12, "half_glu2", 0.1, 135, 2, 41.46),
    "Image": TrainingStep(50, 1024, 6, 512, 384, 3, "half_glu1", 0.1, 0, 10, 26.59),
    "Pathfinder": TrainingStep(64, 1024, 6, 192, 256, 8, "half_glu1", 0.05, 0, 2, 14.46),
    "Retrieval": TrainingStep(64, 4000, 6, 128, 256, 16, "half_glu1", 0.0, 98, 2, 40.66),
    "Path-X": TrainingStep(32, 16384, 6, 128, 256, 16, "half_glu1", 0.0, 0, 2, 88.21),
}
