"""How the figures look: one palette, one width of page, PNG and SVG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..parameters import replace_file

#: Okabe and Ito's colour-blind-safe colours; the lines differ in width and dashes too.
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00"
STYLES: dict[str, dict[str, Any]] = {
    "S4": {"color": BLUE, "linestyle": "-", "linewidth": 5.0, "alpha": 0.35},
    "S4D": {"color": VERMILION, "linestyle": "-", "linewidth": 1.1},
    "S4-PTD, optimised": {"color": GREEN, "linestyle": (0, (4, 2)), "linewidth": 1.6},
    "S4-PTD, closed form": {"color": PURPLE, "linestyle": (0, (1, 1.2)), "linewidth": 1.8},
}
GREY = "0.35"
TIME = "time $t$ (units of the layer's time)"
FREQUENCY = r"angular frequency $\omega$ (rad per unit of the layer's time)"
RELATIVE_SIZE = r"$\Vert E\Vert_2/\Vert A\Vert_2$"


def new(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches, independent of any window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def grid(axes: Any) -> None:
    """Pale lines at the major ticks, behind everything."""
    axes.grid(True, which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def note(axes: Any, text: str, x: float, y: float, **options: Any) -> None:
    """Small text at a place given in data coordinates, with an offset of a few points."""
    offset = options.pop("offset", (4, 0))
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", fontsize=8, **options)


def mark(axes: Any, x: float) -> None:
    """A thin dotted vertical line."""
    axes.axvline(x, color=GREY, linewidth=0.9, linestyle=":", zorder=0)


def legend_above(figure: Any, axes: Any, columns: int = 4) -> None:
    """One legend for all panels, above them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)


def save(figure: Any, path: Path, formats: tuple[str, ...] = ("png", "svg")) -> list[Path]:
    """Write a figure under `path` with each format's suffix; the same bytes for the same numbers. The files written."""
    import matplotlib

    files = [path.with_suffix(f".{kind}") for kind in formats]
    for kind, file in zip(formats, files, strict=True):
        data = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with matplotlib.rc_context({"svg.hashsalt": "ptd"}):
            figure.savefig(data, format=kind, dpi=160, metadata=metadata)
        replace_file(file, data.getvalue())
    return files
