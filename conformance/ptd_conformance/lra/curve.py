"""The learning curve of a run, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptd.parameters import replace_file

COLUMNS = ("epoch", "loss", "validation", "seconds")


def write(folder: Path, curve: Sequence[Mapping[str, float]], title: str, target: float | None) -> None:
    """Write curve.csv and curve.png.

    Args:
        folder: where to.
        curve: rows with COLUMNS; accuracies in [0, 1].
        title: of the picture.
        target: published test accuracy in per cent, drawn as a line, or None.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(curve)
    replace_file(folder / "curve.csv", text.getvalue().encode())
    replace_file(folder / "curve.png", _picture(curve, title, target))


def _picture(curve: Sequence[Mapping[str, float]], title: str, target: float | None) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    epochs = [row["epoch"] for row in curve]
    left.plot(epochs, [100 * row["validation"] for row in curve], color="C0", marker="." if len(curve) < 50 else "")
    right.plot(epochs, [row["loss"] for row in curve], color="C1")
    if target is not None:
        left.axhline(target, color="C0", linestyle=":", label=f"published {target:g} (test)")
        left.legend(loc="lower right")
    left.set_xlabel("epoch")
    left.set_ylabel("validation accuracy, %", color="C0")
    right.set_ylabel("training loss", color="C1")
    left.set_title(title)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
