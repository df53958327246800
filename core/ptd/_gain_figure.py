"""The quickstart's figure: |G(iw)| of S4, S4D and S4-PTD at initialisation, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .analyze import style, tables
from .analyze.gain import FREQUENCY, Grid, headed


def save_table(path: Path, w: Grid, curves: Mapping[str, Grid]) -> None:
    """Write frequencies and gains as CSV, one column per curve."""
    tables.write(path, {FREQUENCY: w, **headed(curves)})


def save_figure(path: Path, w: Grid, curves: Mapping[str, Grid], w_0: float, n: int) -> None:
    """Draw the gains on logarithmic axes, mark the noise frequency w_0, and write a PNG."""
    figure = style.new(8.0, 4.6)
    axes = figure.add_subplot()
    for (name, gain), line in zip(curves.items(), style.STYLES.values(), strict=False):
        axes.loglog(w, gain, label=name, **line)
    style.mark(axes, w_0)
    at_w_0 = {name: float(np.interp(w_0, w, gain)) for name, gain in curves.items()}
    values = [f"{name}: {gain:.2g}" for name, gain in at_w_0.items()]
    axes.annotate(
        "\n".join(
            ["noise: S4D's last spike,", f"$\\omega_0$ = {w_0:.1f}; gain there", *values],
        ),
        (w_0, max(at_w_0.values())),
        xytext=(10, 0),
        textcoords="offset points",
        va="top",
        fontsize=9,
    )
    axes.set_xlim(w[0], w[-1])
    axes.set_xlabel(style.FREQUENCY)
    axes.set_ylabel("gain $|G(i\\omega)|$, output per unit of input")
    axes.set_title(f"HiPPO-LegS of order n = {n} and its diagonal forms, $C = B^T/\\Vert B\\Vert^2$", fontsize=11)
    style.grid(axes)
    axes.legend(loc="lower left", frameon=False)
    style.save(figure, path, ("png",))
