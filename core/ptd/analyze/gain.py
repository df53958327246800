"""|G(iw)| of S4, S4D and S4-PTD, and their last spike (Yu et al. 2024 sec. 3 and fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import modes, transfer
from ..modes import Modes
from . import style
from .systems import INITS, averaging_row
from .tables import Table, distinct, rows, stack

Grid = NDArray[np.float64]
FREQUENCY, ZOOM = "w [rad per unit of time]", "w - w_0 [rad per unit of time]"
HALF_WIDTH = 6.0  # of the zoom, in rad per unit of time; the spike is about one wide at every order


def frequencies(n: int) -> Grid:
    """Angular frequencies around the modes of A_N of order n: logarithmic, and fine across every resonance.

    A mode of S4D decays at 1/2, so its resonance is about one radian per unit of time wide.
    """
    spikes = transfer.legs_spikes(n).omega
    across = np.linspace(-3.0, 3.0, 61)
    grid = np.concatenate([np.geomspace(0.1, 30 * spikes.max(), 1200), (spikes[:, None] + across).ravel()])
    return np.unique(grid[grid >= 0.1])


def gains(n: int, inits: Mapping[str, str], w: Grid) -> dict[str, Grid]:
    """|G(iw)| at frequencies w (K,), for S4 and each diagonal initialisation, with C = B^T/||B||^2.

    S4's is exact, G = C (iw I - A)^{-1} B = (1 - r_n)/n^2; S4D's is G/(1 + r_n), the closed-form PTD's
    G/(1 + rho r_n) (Yu et al. 2024 sec. 3; r_n is `transfer.legs_r`).
    """
    C = averaging_row(n)
    exact = {"S4": np.abs(1 - transfer.legs_r(n, 1j * w)) / n**2}
    return exact | {name: np.abs(_response(modes.MODES[init](n), C, w)) for name, init in inits.items()}


def _response(system: Modes, C: NDArray, w: Grid) -> NDArray[np.complex128]:
    return transfer.diagonal_response(system.Lambda, system.B_tilde, C @ system.V, w, conj_sym=True)


def data(orders: Sequence[int], seed: int) -> dict[str, Table]:
    """The gains of every order over all frequencies, and close to the last spike w_0."""
    whole, zoom = [], []
    near = np.linspace(-HALF_WIDTH, HALF_WIDTH, 481)
    for n in orders:
        w, w_0 = frequencies(n), float(transfer.legs_spikes(n, 1).omega[0])
        whole.append({"n": n, FREQUENCY: w, **headed(gains(n, INITS, w))})
        zoom.append({"n": n, "w_0": w_0, ZOOM: near, **headed(gains(n, INITS, w_0 + near))})
    return {"": stack(whole), "zoom": stack(zoom)}


def headed(curves: Mapping[str, Grid]) -> dict[str, Grid]:
    """The curves under the headings of the tables."""
    return {f"|G(iw)| {name}": gain for name, gain in curves.items()}


def draw(tables: dict[str, Table]) -> Any:
    """One panel per order, and one with the last spikes of all orders on top of each other."""
    orders = distinct(tables[""]["n"])
    columns = len(orders) // 2 + 1
    figure = style.new(4.2 * columns, 7.0)
    cells = figure.add_gridspec(2, columns)
    panels = [figure.add_subplot(cells[k // columns, k % columns]) for k in range(len(orders))]
    _, last = divmod(len(orders), columns)
    zoom = figure.add_subplot(cells[1, last:])
    for axes, n in zip(panels, orders, strict=True):
        w_0 = float(rows(tables["zoom"], n=n)["w_0"][0])
        _draw_order(axes, rows(tables[""], n=n), n, w_0)
    _draw_zoom(zoom, tables["zoom"], orders)
    style.legend_above(figure, panels[0])
    figure.supylabel(r"gain $|G(i\omega)|$, $C = B^T/\Vert B\Vert^2$ (output per unit of input)", fontsize=10)
    return figure


def _draw_order(axes: Any, table: Table, n: int, w_0: float) -> None:
    for name, line in style.STYLES.items():
        axes.loglog(table[FREQUENCY], table[f"|G(iw)| {name}"], label=name, **line)
    style.mark(axes, w_0)
    style.note(axes, rf"last spike, $\omega_0$ = {w_0:.4g}", w_0, 1.2, offset=(-4, 0), ha="right")
    axes.set_ylim(0.01 / n**2, 3)
    axes.set_title(f"order n = {n}", fontsize=10)
    axes.set_xlabel(style.FREQUENCY, fontsize=8)
    style.grid(axes)


def _draw_zoom(axes: Any, zoom: Table, orders: Sequence[int]) -> None:
    for k, n in enumerate(orders):
        table = rows(zoom, n=n)
        width = {"linewidth": 1.0 + 3.0 * (1 - k / len(orders)), "alpha": 0.25 + 0.75 * (k + 1) / len(orders)}
        for name, line in style.STYLES.items():
            axes.semilogy(table[ZOOM], table[f"|G(iw)| {name}"], **line | (width if name == "S4D" else {}))
        style.note(axes, f"n = {n}", HALF_WIDTH, float(table["|G(iw)| S4"][-1]), va="center", annotation_clip=False)
    style.note(axes, "S4D, every order:\nthe same height and width", 0.7, 0.25, color=style.VERMILION)
    axes.set_title(r"zoom on the last spike, all orders: S4D has $2n^2/\pi^2$ times the gain of S4", fontsize=10)
    axes.set_xlabel(r"$\omega - \omega_0$ (rad per unit of the layer's time)", fontsize=8)
    axes.set_xlim(-HALF_WIDTH, HALF_WIDTH)
    style.grid(axes)
