"""Trained classifiers under Fourier-mode noise (Yu et al. 2024 sec. 5.2): accuracy by amplitude and by frequency.

The noise, test only, is added to the input of every state-space layer: amplitude a cos(w step_h l), a ~ U[0, 1) per
sample and channel, with the channel's own step size. It is aimed at w_0, the last spike of S4D's initialisation.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptd import checks
from ptd.layers import S5
from ptd.parameters import replace_file
from ptd.quickstart import last_spike, wave

from .. import json_file
from . import results
from .training import Run

AMPLITUDES = (0.05, 0.1, 0.2, 0.5, 1.0)
#: As shares of w_0.
FREQUENCIES = (0.125, 0.25, 0.33, 0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 2.0)
#: The paper's amplitude, at which frequencies are swept.
AMPLITUDE = 0.1
KIND = results.UNDER_NOISE
FIGURE = f"{KIND}.png"

Result = dict[str, Any]
#: What is read of every result.
FIELDS = {object: "recipe backend device seed epochs full note options clean by_amplitude by_frequency"}
Report = Callable[[int, int], None]


def measure(
    run: Run,
    *,
    amplitudes: Sequence[float] = AMPLITUDES,
    frequencies: Sequence[float] = FREQUENCIES,
    samples: int = 10_000,
    report: Report = lambda done, total: None,
) -> Result:
    """Accuracies of a run's selected parameters on the first test samples, clean and disturbed.

    Args:
        run: trained, with its selected parameters in the learner.
        amplitudes: of the noise at w_0.
        frequencies: in units of w_0, at AMPLITUDE.
        samples: how many test samples.
        report: called with (accuracies known, accuracies in all).

    Returns:
        A record with accuracies in [0, 1].

    Raises:
        ValueError: no samples, or a layer that the noise is not made for.
    """
    checks.positive_integer("samples", samples)
    if isinstance(run.model.layer, S5):  # its steps are its modes'
        raise checks.fail("runs", "layers with a step for every feature, which the noise follows", "s5", "pass others")
    w_0, leaves = last_spike(run.model.layer.d_state), run.learner.parameters()
    frequencies_of = [np.abs(leaves[f"blocks.{i}.layer.Lambda_im"]) for i in range(run.model.n_layers)]
    points = [(0.0, 1.0), *((a, 1.0) for a in amplitudes), *((AMPLITUDE, f) for f in frequencies)]
    found = []
    for done, (amplitude, share) in enumerate(points):
        report(done, len(points))
        found.append(_accuracy(run, leaves, amplitude, share * w_0, samples))
    count = 1 + len(amplitudes)
    record = results.of(run, "complete")
    return {name: value for name, value in record.items() if name not in ("curve", "lra", "test")} | {
        KIND: 1,
        "w_0": w_0,
        "largest_frequency": [float(w.max()) for w in frequencies_of],
        "samples": min(samples, len(run.data.splits["test"].targets)),
        "clean": found[0],
        "by_amplitude": [[a, accuracy] for a, accuracy in zip(amplitudes, found[1:count], strict=True)],
        "by_frequency": [[f, accuracy] for f, accuracy in zip(frequencies, found[count:], strict=True)],
    }


def _accuracy(run: Run, leaves: dict[str, NDArray], amplitude: float, frequency: float, samples: int) -> float:
    """The noise is the same for every model: its amplitudes are drawn from one seed, batch after batch."""
    part, rng, be = run.data.splits["test"], np.random.default_rng(0), run.backend
    L, H, batch = part.inputs.shape[1], run.model.layer.d_model, run.recipe.batch
    steps = [np.exp(leaves[f"blocks.{i}.layer.log_step"].astype(np.float64)) for i in range(run.model.n_layers)]
    waves = [be.asarray(wave(step, L, frequency), "float32") for step in steps]
    right = total = 0
    for first in range(0, min(samples, len(part.targets)), batch):
        rows = np.arange(first, min(first + batch, samples, len(part.targets)))
        filled = np.concatenate([rows, np.full(batch - len(rows), first)])  # one compiled shape
        drawn = [amplitude * rng.uniform(size=(batch, 1, H)) for _ in waves]
        noise = [be.asarray(a, "float32") * w for a, w in zip(drawn, waves, strict=True)]
        outputs = run.learner.outputs(be.asarray(np.asarray(part.inputs[filled])), None, noise)
        right += int((np.asarray(outputs).argmax(-1) == part.targets[filled])[: len(rows)].sum())
        total += len(rows)
    return right / total


def write(folder: Path, result: Result) -> None:
    """Write a result as JSON."""
    name = f"{KIND}-{results.name(result)}.json"
    replace_file(folder / name, (json.dumps(result, indent=1) + "\n").encode())


def draw(folder: Path) -> None:
    """Write the figure of all results of a folder.

    Raises:
        ValueError: it has none.
    """
    if not (found := read_all(folder)):
        raise ValueError(f"out: expected a folder with results of ptd robustness, got {folder}; pass runs")
    replace_file(folder / FIGURE, picture(found))


def picture(found: Sequence[Result]) -> bytes:
    """Accuracy over amplitude at w_0, and over frequency; dashed where the system is learned."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, result in enumerate(found):
        frozen = result["options"]["optimizer"].get("frozen")
        style = {"color": f"C{i}", "marker": ".", "linestyle": "-" if frozen else "--"}
        label = f"{result['recipe']}, seed {result['seed']}"
        by_amplitude = [[0.0, result["clean"]], *result["by_amplitude"]]
        for axes, points in ((left, by_amplitude), (right, result["by_frequency"])):
            shares, accuracies = [x for x, _ in points], [100 * accuracy for _, accuracy in points]
            axes.plot(shares, accuracies, label=label if axes is left else None, **style)
    left.set_xlabel("amplitude at the last spike w_0")
    left.set_ylabel("test accuracy, %")
    right.set_xlabel(f"frequency / w_0, at amplitude {AMPLITUDE:g}")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def read_all(folder: Path) -> list[Result]:
    """The robustness results of a folder, in the order of their names.

    Raises:
        ValueError: a file is none; it is named.
    """
    paths = sorted(folder.glob(f"{KIND}-*.json"))
    return [json_file.read(path, "a result of ptd robustness", FIELDS, "copy it again") for path in paths]


def table(folder: Path) -> list[dict[str, Any]]:
    """The report's table of a folder's results; none if it has none."""
    found: Iterable[Result] = read_all(folder) if folder.is_dir() else []
    if not found:
        return []
    columns = ["recipe", "backend", "device", "seed", "epochs", "clean", *(f"amplitude {a:g}" for a in AMPLITUDES)]
    rows = []
    for r in found:
        by_amplitude = {a: f"{100 * accuracy:.1f}" for a, accuracy in r["by_amplitude"]}
        cells = [by_amplitude.get(a, "") for a in AMPLITUDES]
        epochs = f"{r['epochs']}" if r["full"] else f"{r['epochs']} (a trial)"
        rows.append([r["recipe"], r["backend"], r["device"], r["seed"], epochs, f"{100 * r['clean']:.1f}", *cells])
    note = "Test accuracy in per cent with noise of one Fourier mode, at S4D's last spike, in the input of every layer."
    note += "".join(f" {r['recipe']}, seed {r['seed']}: {r['note']}." for r in found if r["note"])
    figure = folder / FIGURE
    picture = base64.b64encode(figure.read_bytes()).decode() if figure.is_file() else ""
    title = "Colour CIFAR-10 under noise"
    return [{"title": title, "note": note, "columns": columns, "rows": rows, "picture": picture}]
