"""The frequency regression of Yu et al. 2024 sec. 3.4: who still knows the amplitude past the trained frequencies?

Inputs a cos(s t); the pair (s, a) is to be read off the sequence. Trained on s in [0, 80], tested on [0, 100]. S4D's
last spike for n = 16 is at 80.966: just outside.

The layers are those of `ptd`, as initialised: state matrix, input column and a random output row per feature. What the
paper trains end to end is here a readout in closed form, so that nothing but the state matrix can make the difference:

    layer -> root mean square over time -> standardised -> one hidden layer of random weights, ReLU -> ridge regression

with the ridge parameter chosen on trained frequencies only. It differs from the paper's model in that (one layer, C not
trained); the inputs, the frequencies, n and the question are the paper's. S4 is sampled by the bilinear rule, the
diagonal forms by a zero-order hold, as their layers are by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import transfer
from ..initialization import initialize
from ..layers import S4, S4D, Layer
from ..reference import backend
from . import style
from .systems import INITS, NAMES
from .tables import Table

Array = NDArray[Any]
ORDER, FEATURES, HIDDEN = 16, 32, 256
STEP, LENGTH = 0.01, 512  # 5.12 units of time: two and a half times what a mode of S4D takes to build up
TRAINED_TO, TESTED_TO = 80.0, 100.0
SAMPLES, HELD_OUT, CHUNK = 1200, 240, 120
RIDGES = 10.0 ** np.arange(-8, 2)
S = "s [rad per unit of time]"


def layer_of(name: str, seed: int) -> tuple[Layer, dict[str, Array]]:
    """The layer of one of NAMES, FEATURES features of order ORDER at one step size, without D."""
    layer = S4(FEATURES, ORDER, skip=False) if name == "S4" else S4D(FEATURES, ORDER, skip=False)
    options = {} if name == "S4" else {"init": INITS[name]}
    rng = np.random.default_rng(seed)
    return layer, initialize(layer, rng, dt_min=STEP, dt_max=STEP, **options)


def amplitudes(layer: Layer, params: dict[str, Array], s: Array, a: Array) -> Array:
    """Root mean square over time of every feature (K, FEATURES), for the inputs a cos(s t), s and a (K,)."""
    t = STEP * np.arange(LENGTH)
    parts = []
    for k in range(0, len(s), CHUNK):
        u = a[k : k + CHUNK, None] * np.cos(s[k : k + CHUNK, None] * t)
        y = backend.apply(layer, params, np.repeat(u[..., None], FEATURES, axis=-1))
        parts.append(np.sqrt(np.mean(np.asarray(y) ** 2, axis=1)))
    return np.concatenate(parts)


def readout(features: Array, targets: Array, rng: np.random.Generator) -> Any:
    """The function from features (K, H) to targets (K, m), fitted to these; the last HELD_OUT choose the ridge."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    H = features.shape[1]
    W, b = rng.standard_normal((H, HIDDEN)) * 1.5 / np.sqrt(H), rng.standard_normal(HIDDEN)

    def hidden(X: Array) -> Array:
        X = (X - mean) / spread
        return np.hstack([np.ones((len(X), 1)), X, np.maximum(X @ W + b, 0)])

    X = hidden(features)
    seen, held = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    errors = [np.mean((X[held] @ _ridge(X[seen], targets[seen], r) - targets[held]) ** 2) for r in RIDGES]
    weights = _ridge(X, targets, RIDGES[int(np.argmin(errors))])
    return lambda new: hidden(new) @ weights


def _ridge(X: Array, Y: Array, ridge: float) -> Array:
    return np.linalg.solve(X.T @ X + ridge * np.eye(X.shape[1]), X.T @ Y)


def predictions(name: str, s: Array, seed: int) -> Array:
    """Predicted frequency and amplitude (K, 2) of cos(s t), s (K,), by a model trained on s in [0, TRAINED_TO]."""
    rng = np.random.default_rng(seed)
    layer, params = layer_of(name, seed)
    train_s, train_a = rng.uniform(0, TRAINED_TO, SAMPLES), rng.uniform(0.5, 1.5, SAMPLES)
    targets = np.stack([train_s / TRAINED_TO, train_a], axis=1)
    model = readout(amplitudes(layer, params, train_s, train_a), targets, rng)
    return model(amplitudes(layer, params, s, np.ones_like(s))) * [TRAINED_TO, 1.0]


def data(orders: Sequence[int], seed: int) -> dict[str, Table]:
    """The predictions of every model for amplitude 1 over all tested frequencies."""
    s = np.arange(0.125, TESTED_TO, 0.25)
    table: Table = {S: s}
    for name in NAMES:
        frequency, amplitude = predictions(name, s, seed).T
        table |= {f"amplitude {name}": amplitude, f"{S} {name}": frequency}
    return {"": table}


def draw(tables: dict[str, Table]) -> Any:
    """Predicted amplitude and frequency against the true frequency."""
    table = tables[""]
    figure = style.new(11.0, 4.4)
    left, right = figure.subplots(1, 2)
    for name, look in style.STYLES.items():
        left.plot(table[S], table[f"amplitude {name}"], label=name, **look)
        right.plot(table[S], table[f"{S} {name}"], **look)
    left.axhline(1, color=style.GREY, linewidth=0.8, linestyle="--")
    left.axhline(0, color=style.GREY, linewidth=0.6)
    right.plot([0, TESTED_TO], [0, TESTED_TO], color=style.GREY, linewidth=0.8, linestyle="--")
    w_0 = float(transfer.legs_spikes(ORDER, 1).omega[0])
    for axes, quantity in ((left, "amplitude $a$"), (right, "frequency $s$ (rad per unit of time)")):
        axes.axvspan(TRAINED_TO, TESTED_TO, color="0.94", zorder=0)
        style.mark(axes, w_0)
        axes.set_xlim(0, TESTED_TO)
        axes.set_xlabel("frequency $s$ of the input (rad per unit of time)")
        axes.set_ylabel(f"predicted {quantity}")
        style.grid(axes)
    style.note(left, "true amplitude 1", 1, 1, offset=(4, -14), color=style.GREY)
    style.note(left, "trained here", TRAINED_TO, 0.5, ha="right", offset=(-4, 0))
    style.note(left, f"S4D's last\nspike {w_0:.2f}", w_0, 0.5)
    negative = [name for name in NAMES if (table[f"amplitude {name}"] < 0).any()]
    text = f"negative: {', '.join(negative) or 'none'}"
    style.note(left, text, TRAINED_TO, -0.5, ha="right", offset=(-4, 0), color=style.VERMILION)
    style.legend_above(figure, left)
    return figure
