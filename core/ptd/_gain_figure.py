"""The quickstart's figure: |G(iw)| of S4, S4D and S4-PTD at initialisation, and its numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import hippo, modes, transfer
from .modes import Modes
from .parameters import replace_file

Grid = NDArray[np.float64]

#: Okabe and Ito's colour-blind-safe blue, vermilion and green; the lines differ in style too.
STYLES = (
    {"color": "#0072B2", "linestyle": "-", "linewidth": 5.0, "alpha": 0.35},
    {"color": "#D55E00", "linestyle": "-", "linewidth": 1.1},
    {"color": "#009E73", "linestyle": (0, (4, 2)), "linewidth": 1.6},
)


def frequencies(n: int) -> Grid:
    """Angular frequencies around the modes of A_N of order n: logarithmic, and fine across every resonance.

    A mode of S4D decays at 1/2, so its resonance is about one radian per unit of time wide.
    """
    spikes = modes.legs(n).Lambda.imag
    across = np.linspace(-3.0, 3.0, 61)
    grid = np.concatenate([np.geomspace(0.1, 30 * spikes.max(), 1200), (spikes[:, None] + across).ravel()])
    return np.unique(grid[grid >= 0.1])


def gains(n: int, inits: Mapping[str, str], w: Grid) -> dict[str, Grid]:
    """|G(iw)| at frequencies w (K,), for S4 and each diagonal initialisation, with C = B^T/||B||^2.

    S4's is exact, G = C (iw I - A)^{-1} B = (1 - r_n)/n^2; S4D's is G/(1 + r_n), the closed-form PTD's
    G/(1 + rho r_n) (Yu et al. 2024 sec. 3; r_n is `transfer.legs_r`).
    """
    _, B = hippo.legs(n)
    C = B / (B @ B)
    exact = {"S4": np.abs(1 - transfer.legs_r(n, 1j * w)) / n**2}
    return exact | {name: np.abs(_response(modes.MODES[init](n), C, w)) for name, init in inits.items()}


def _response(system: Modes, C: NDArray, w: Grid) -> NDArray[np.complex128]:
    return transfer.diagonal_response(system.Lambda, system.B_tilde, C @ system.V, w, conj_sym=True)


def save_table(path: Path, w: Grid, curves: Mapping[str, Grid]) -> None:
    """Write frequencies and gains as CSV, one column per curve."""
    text = io.StringIO()
    header = ",".join(["w [rad per unit of time]", *(f"|G(iw)| {name}" for name in curves)])
    np.savetxt(text, np.column_stack([w, *curves.values()]), "%.9g", ",", header=header, comments="")
    replace_file(path, text.getvalue().encode())


def save_figure(path: Path, w: Grid, curves: Mapping[str, Grid], w_0: float, n: int) -> None:
    """Draw the gains on logarithmic axes, mark the noise frequency w_0, and write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, gain), style in zip(curves.items(), STYLES, strict=True):
        axes.loglog(w, gain, label=name, **style)
    axes.axvline(w_0, color="0.35", linewidth=0.9, linestyle=":", zorder=0)
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
    axes.set_xlabel("angular frequency $\\omega$ (rad per unit of the layer's time)")
    axes.set_ylabel("gain $|G(i\\omega)|$, output per unit of input")
    axes.set_title(f"HiPPO-LegS of order n = {n} and its diagonal forms, $C = B^T/\\Vert B\\Vert^2$", fontsize=11)
    axes.grid(True, which="major", color="0.9", linewidth=0.6)
    axes.legend(loc="lower left", frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    replace_file(path, png.getvalue())
