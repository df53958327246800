"""The main job in two minutes: train S4D and S4-PTD on real digits, then aim noise at S4D's last spike.

    digits, pixel by pixel -> SequenceModel on a backend -> clean and noisy accuracy, checkpoint, |G(iw)|

The setting is that of Yu et al. 2024 sec. 5.2, on scikit-learn's 8 x 8 digits: no residual connection, no
D, layer norm after each block, Lambda, B and the step sizes frozen at their initial values, C trained. The
noise, one Fourier mode, is added at test time only, to the input of every state-space layer. It is smaller
than the paper's: two blocks for four, 48 features for 128, 64 pixels for 1024; AMPLITUDE is larger for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from . import _gain_figure, checks, modes, parameters, registry
from .analyze import gain
from .contract import Learner
from .extras import require
from .layers import S4D
from .model import SequenceModel
from .optimization import Optimizer

#: The classifiers compared, each with its initialisation; everything else is equal, the random draws too.
MODELS = {"S4D": "legs", "S4-PTD": "ptd-closed"}

#: Range of the step sizes, time per sample: S4's usual one. After L samples a mode of S4D, which decays at
#: 1/2, has built up 1 - exp(-L step/2) of its resonance, of which the zero-order hold passes sinc(w_0
#: step/2): at L = 64 and w_0 = 325 the product is largest, 0.17, near step = 0.009, in the middle of the
#: range. From pi/w_0 = 0.0097 on the samples of the noise are those of a slower wave, and so are the
#: mode's: the two still resonate.
STEPS = (1e-3, 1e-1)

#: Of the noise; the layers' inputs have about unit variance. The paper takes 0.1 at L = 1024, where a mode of
#: small step builds up 16 times as far as at L = 64.
AMPLITUDE = 0.7

BATCH = 48

#: Who needs scikit-learn, matplotlib and rich, and what brings them.
EXTRA = ("quickstart", "quickstart,jax")


class Digits(NamedTuple):
    """Sequences of pixels (samples, 64, 1), normalised by the training pixels, and digits (samples,)."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int32]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int32]


@dataclass(frozen=True)
class Score:
    """What one model reached.

    Attributes:
        clean, noisy: test accuracy in [0, 1], without and with the noise.
        seconds: wall time of the training, compilation included.
        checkpoint: the saved file.
        reload_difference: largest difference between the trained model's clean test outputs and those of the
            reloaded file in the numpy reference, float64.
        predictions_agree: whether both name the same digit for every test image.
    """

    clean: float
    noisy: float
    seconds: float
    checkpoint: Path
    reload_difference: float
    predictions_agree: bool


@dataclass(frozen=True)
class Result:
    """What quickstart measured and wrote.

    Attributes:
        scores: by the names in MODELS.
        noise_frequency: w_0, in radians per unit of time.
        amplitude: of the noise.
        figure, table: |G(iw)| as PNG and as CSV.
    """

    scores: dict[str, Score]
    noise_frequency: float
    amplitude: float
    figure: Path
    table: Path


def quickstart(
    backend_name: str = "jax",
    out: str | Path = "quickstart",
    seed: int = 0,
    *,
    epochs: int = 30,
    width: int = 48,
    depth: int = 2,
    d_state: int = 32,
    amplitude: float = AMPLITUDE,
) -> Result:
    """Train, disturb, save, reload and compare the MODELS on sequential digits; prints as it goes.

    Args:
        backend_name: a backend that trains; see ptd.backends().
        out: folder for checkpoints, figure and table; made if missing, files in it replaced.
        seed: of the split, the initial draws, the batches, dropout and the noise, >= 0.
        epochs: passes over the training set, at least 2: the first warms up.
        width: H.
        depth: number of blocks.
        d_state: n, at least 2.
        amplitude: of the noise, in standard deviations of the layers' inputs, >= 0.

    Returns:
        A Result.

    Raises:
        ImportError: scikit-learn, matplotlib, rich or the backend is missing; names the pip command.
        Unsupported: the backend does not train.
        ValueError: a size, the amplitude or the seed is out of its domain.
    """
    _check(epochs, d_state, amplitude, seed)
    for module in ("rich", "matplotlib"):
        require(module, *EXTRA)
    from .console import Lines

    console = Lines()
    digits, w_0, out = load_digits(seed), last_spike(d_state), Path(out)
    backend = registry.backend(backend_name)
    model = classifier(width, depth, d_state)
    console.say(
        f"{len(digits.train)} training and {len(digits.test)} test digits of {digits.test.shape[1]} pixels; "
        f"backend {backend.name} on {backend.device()}; seed {seed}\n"
        f"Noise at test time, into every layer: {amplitude:g} a cos({w_0:.1f} step l), a ~ U[0, 1); "
        "the paper has 0.1 and 1024 pixels.",
    )
    scores = {}
    for name, init in MODELS.items():
        began = time.perf_counter()
        leaves = model.initialize(np.random.default_rng(seed), init=init, dt_min=STEPS[0], dt_max=STEPS[1])
        learner = backend.learner(model, leaves, optimizer(epochs, len(digits.train)), seed)
        with _progress(console, name, epochs) as report:
            train(learner, digits, epochs, seed, report)
        seconds = time.perf_counter() - began
        noise = layer_noise(leaves, model, digits.test.shape[:2], w_0, amplitude, seed)
        scores[name] = score(learner, model, digits, noise, seconds, out / f"{name.lower()}.safetensors")
    result = Result(scores, w_0, amplitude, out / "gain.png", out / "gain.csv")
    w = gain.frequencies(d_state)
    curves = gain.gains(d_state, MODELS, w)
    _gain_figure.save_table(result.table, w, curves)
    _gain_figure.save_figure(result.figure, w, curves, w_0, d_state)
    _print(console, result)
    return result


def load_digits(seed: int) -> Digits:
    """Scikit-learn's 1797 digits, read pixel by pixel: four fifths to train, a stratified fifth to test.

    Raises:
        ImportError: scikit-learn is missing; names the pip command.

    >>> load_digits(0).test.shape
    (360, 64, 1)
    """
    images, labels = require("sklearn.datasets", *EXTRA).load_digits(return_X_y=True)
    split = require("sklearn.model_selection", *EXTRA).train_test_split
    train, test, train_labels, test_labels = split(
        images[..., None], labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=seed
    )
    mean, std = train.mean(), train.std()
    train, test = (((x - mean) / std).astype(np.float32) for x in (train, test))
    return Digits(train, train_labels, test, test_labels)


def last_spike(n: int) -> float:
    """w_0 = max Im eig(A_N), where |G(iw)| of S4D-LegS of order n has its last spike; in 1/time.

    The gain there is S4's times 1/|1 + r_n| ~ 2 n^2/pi^2 (Yu et al. 2024 sec. 3).

    >>> round(last_spike(32), 1)
    325.4
    """
    return float(modes.legs(n).Lambda.imag.max())


def classifier(width: int, depth: int, d_state: int) -> SequenceModel:
    """The model of Yu et al. 2024 sec. 5.2 at this size: C is all that a state-space layer trains."""
    return SequenceModel(
        S4D(width, d_state, shared=True, skip=False),
        n_layers=depth,
        d_input=1,
        d_output=10,
        prenorm=False,
        residual=False,
        activation="full_glu",
        dropout=0.1,
        tie_dropout=True,
    )


def optimizer(epochs: int, samples: int) -> Optimizer:
    """AdamW at the paper's rate and decay, warmed up for an epoch, with the system frozen."""
    steps = samples // BATCH
    return Optimizer(
        lr=1e-2,
        total_steps=epochs * steps,
        weight_decay=0.05,
        warmup_steps=steps,
        frozen=("Lambda", "B", "log_step"),
    )


def train(learner: Learner, digits: Digits, epochs: int, seed: int, report: Callable[[int, float], None]) -> None:
    """Run all epochs in shuffled batches of one size; report(epoch, mean loss of its batches) after each."""
    rng = np.random.default_rng(seed)
    whole = len(digits.train) // BATCH * BATCH
    for epoch in range(1, epochs + 1):
        batches = rng.permutation(len(digits.train))[:whole].reshape(-1, BATCH)
        losses = [learner.step(digits.train[i], digits.train_labels[i]) for i in batches]
        report(epoch, float(np.mean([float(loss) for loss in losses])))


def wave(step: NDArray[np.float64], L: int, frequency: float) -> NDArray[np.float32]:
    """cos(frequency step_h l), a Fourier mode as each channel samples it (Yu et al. 2024 sec. 5.2).

    Args:
        step: (H,) step sizes of the channels, time per sample.
        L: number of samples; l = 0 ... L-1.
        frequency: in radians per unit of time.

    Returns:
        (L, H) float32.

    >>> wave(np.array([0.25]), 3, 4 * np.pi).ravel().tolist()
    [1.0, -1.0, 1.0]
    """
    return np.cos(frequency * np.asarray(step, np.float64) * np.arange(L)[:, None]).astype(np.float32)


def fourier_mode(
    step: NDArray[np.float64], shape: tuple[int, ...], frequency: float, amplitude: float, rng: Generator
) -> NDArray[np.float32]:
    """The noise amplitude a cos(frequency step_h l) with an a per sequence and channel (Yu et al. sec. 5.2).

    Args:
        step: (H,) step sizes of the channels, time per sample.
        shape: (sequences, L); l = 0 ... L-1.
        frequency: in radians per unit of time.
        amplitude: the largest amplitude.
        rng: source of a ~ U[0, 1).

    Returns:
        (sequences, L, H) float32.

    >>> noise = fourier_mode(np.array([0.25]), (1, 3), 4 * np.pi, 1.0, np.random.default_rng(0))
    >>> (noise[0, :, 0] / noise[0, 0, 0]).tolist()
    [1.0, -1.0, 1.0]
    """
    sequences, L = shape
    a = rng.uniform(size=(sequences, 1, len(step)))
    return (amplitude * a * wave(step, L, frequency)).astype(np.float32)


def layer_noise(
    leaves: dict[str, NDArray],
    model: SequenceModel,
    shape: tuple[int, ...],
    frequency: float,
    amplitude: float,
    seed: int,
) -> list[NDArray[np.float32]]:
    """fourier_mode for every block of a model, with the block's own (frozen) step sizes."""
    rng = np.random.default_rng(seed)
    steps = [np.exp(leaves[f"blocks.{i}.layer.log_step"]) for i in range(model.n_layers)]
    return [fourier_mode(step, shape, frequency, amplitude, rng) for step in steps]


def score(
    learner: Learner,
    model: SequenceModel,
    digits: Digits,
    noise: list[NDArray[np.float32]],
    seconds: float,
    checkpoint: Path,
) -> Score:
    """Test a trained model, save it, and compare it with what the numpy reference makes of the saved file."""
    outputs, disturbed = learner.outputs(digits.test), learner.outputs(digits.test, layer_noise=noise)
    parameters.save(checkpoint, model, learner.parameters())
    reloaded, leaves = parameters.load(checkpoint)
    exact = registry.backend("numpy").apply_model(
        reloaded,  # type: ignore[arg-type]
        {name: leaf.astype(np.float64) for name, leaf in leaves.items()},
        digits.test.astype(np.float64),
    )
    return Score(
        clean=_accuracy(outputs, digits.test_labels),
        noisy=_accuracy(disturbed, digits.test_labels),
        seconds=seconds,
        checkpoint=checkpoint,
        reload_difference=float(np.abs(outputs - exact).max()),
        predictions_agree=bool((outputs.argmax(-1) == exact.argmax(-1)).all()),
    )


def _accuracy(outputs: NDArray, labels: NDArray) -> float:
    return float((outputs.argmax(-1) == labels).mean())


def _check(epochs: int, d_state: int, amplitude: float, seed: int) -> None:
    for name, value in (("epochs", epochs), ("d_state", d_state)):
        checks.positive_integer(name, value)
        if value < 2:
            raise checks.fail(name, "an integer >= 2", value)
    if not 0 <= amplitude < np.inf:
        raise checks.fail("amplitude", "a finite number >= 0", amplitude)
    checks.seed(seed)


@contextmanager
def _progress(console: Any, name: str, epochs: int) -> Iterator[Callable[[int, float], None]]:
    """A bar over epochs with the loss, and the function that moves it."""
    rich = require("rich.progress", *EXTRA)
    columns = ("{task.description}", rich.BarColumn(), "{task.fields[status]}", rich.TimeElapsedColumn())
    with rich.Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{name:7}", total=epochs, status="compiling")
        yield lambda epoch, loss: bar.update(task, completed=epoch, status=f"epoch {epoch:2}/{epochs}  loss {loss:.3f}")


def _print(console: Any, result: Result) -> None:
    table = require("rich.table", *EXTRA).Table("model", "clean accuracy", "noisy accuracy", "seconds")
    table.add_column("checkpoint", overflow="fold")
    for name, s in result.scores.items():
        table.add_row(name, f"{s.clean:.1%}", f"{s.noisy:.1%}", f"{s.seconds:.0f}", str(s.checkpoint))
    console.print(table)
    for name, s in result.scores.items():
        agreement = "all predictions agree" if s.predictions_agree else "PREDICTIONS DIFFER"
        console.say(f"{name} reloaded in numpy: largest difference {s.reload_difference:.1e}, {agreement}")
    files = f"{result.figure}, {result.table}"
    console.say(f"|G(iw)| with the noise at w = {result.noise_frequency:.1f}: {files}")
