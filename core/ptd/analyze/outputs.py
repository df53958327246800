"""Outputs in time for a Fourier mode, for e^{-t} and for a unit impulse (Yu et al. 2024 sec. 3 and app. F).

Each input is the output of a small autonomous system, so that system and input together obey z'(t) = M z(t) from z(0):
sampled by one matrix exponential, and of known energy, without any error of discretisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from .. import transfer
from . import style
from .systems import INITS, NAMES, averaging_row, first_state, system
from .tables import Table, distinct, rows, stack

Array = NDArray[Any]
TIME = "t [units of the layer's time]"
ERROR = "L2 error"
DECAY, IMPULSE = "decay e^-t", "unit impulse"
#: Of the Fourier modes shown, as parts of the last spike's frequency.
PARTS = (0.1, 0.5, 1.0)
ERROR_ORDERS = (4, 8, 16, 32, 64)
#: Of a Fourier mode: twice the time constant of S4D's modes, as far as 40 samples a period reach.
DURATION, MOST_SAMPLES = 4.0, 20_000


def driven(A: Array, B: Array, generator: Array, start: Array, read: Array) -> tuple[Array, Array]:
    """M and z(0) of x' = A x + B u with u = read @ g, g' = generator g, g(0) = start; x first, then g.

    Args:
        A: (n, n).
        B: (n,).
        generator: (m, m).
        start, read: (m,).

    Returns:
        M (n + m, n + m) and z(0) (n + m,), x(0) = 0.
    """
    M = scipy.linalg.block_diag(A, generator)
    M[: len(A), len(A) :] = np.outer(B, read)
    return M, np.concatenate([np.zeros(len(A)), start])


def fourier_mode(A: Array, B: Array, w: float) -> tuple[Array, Array]:
    """`driven` by u = cos(w t)."""
    return driven(A, B, np.array([[0.0, -w], [w, 0.0]]), np.array([1.0, 0.0]), np.array([1.0, 0.0]))


def decay(A: Array, B: Array) -> tuple[Array, Array]:
    """`driven` by u = e^{-t}."""
    return driven(A, B, np.array([[-1.0]]), np.ones(1), np.ones(1))


def impulse(A: Array, B: Array) -> tuple[Array, Array]:
    """The system after a unit impulse: x(0) = B."""
    return A, B


INPUTS = {DECAY: decay, IMPULSE: impulse}


def samples(M: Array, start: Array, C: Array, t: Array) -> Array:
    """y(t) = C x(t) at evenly spaced t (K,) from 0, for z' = M z; C (n,) reads the first states."""
    advance = scipy.linalg.expm(M * (t[1] - t[0]))
    y, z = np.empty(len(t)), start
    for k in range(len(t)):
        y[k] = C @ z[: len(C)]
        z = advance @ z
    return y


def output_error(kind: str, name: str, n: int) -> float:
    """L2 norm over t >= 0 of y_S4 - y of one of NAMES, for an input of INPUTS and C = e_0.

    For e^{-t} and S4D it is 1/(2n) (Yu et al. 2024 sec. 3). By the Lyapunov equation of both systems side by side.

    >>> round(output_error("decay e^-t", "S4D", 16) * 2 * 16, 3)
    1.0
    """
    M, start = zip(*(INPUTS[kind](*system(which, n)) for which in ("S4", name)), strict=True)
    both, z = scipy.linalg.block_diag(*M), np.concatenate(start)
    difference = np.zeros(len(both))
    difference[[0, len(M[0])]] = 1, -1
    gramian = scipy.linalg.solve_continuous_lyapunov(both, -np.outer(z, z))
    return float(np.sqrt(max(difference @ gramian @ difference, 0.0)))


def fourier_data(orders: Sequence[int], seed: int) -> dict[str, Table]:
    """Outputs for cos(w t) at several parts of every order's w_0, with C = B^T/||B||^2."""
    parts = []
    for n in orders:
        w_0 = float(transfer.legs_spikes(n, 1).omega[0])
        step = min(0.005, 2 * np.pi / w_0 / 40)
        t = step * np.arange(min(int(DURATION / step) + 1, MOST_SAMPLES))
        for part in PARTS:
            curves = {
                f"y {name}": samples(*fourier_mode(*system(name, n), part * w_0), averaging_row(n), t) for name in NAMES
            }
            parts.append({"n": n, "w/w_0": part, "w [rad per unit of time]": part * w_0, TIME: t, **curves})
    return {"": stack(parts)}


def fourier_draw(tables: dict[str, Table]) -> Any:
    """Rows are orders, columns are frequencies."""
    orders = distinct(tables[""]["n"])
    figure = style.new(11.0, 2.5 * len(orders) + 0.9)
    panels = figure.subplots(len(orders), len(PARTS), squeeze=False, sharex=True)
    for line, n in zip(panels, orders, strict=True):
        for axes, part in zip(line, PARTS, strict=True):
            table = rows(tables[""], n=n, **{"w/w_0": part})
            for name, look in style.STYLES.items():
                axes.plot(table[TIME], table[f"y {name}"], label=name, **look)
            w = float(table["w [rad per unit of time]"][0])
            ratio = r"\omega_0" if part == 1 else rf"{part:g}\,\omega_0"
            axes.set_title(rf"n = {n}, $u = \cos\omega t$, $\omega = {ratio}$ = {w:.4g}", fontsize=9)
            style.grid(axes)
    style.legend_above(figure, panels[0, 0])
    figure.supxlabel(style.TIME, fontsize=10)
    figure.supylabel(r"output $y$, $C = B^T/\Vert B\Vert^2$ (units of the input)", fontsize=10)
    return figure


def inputs_data(orders: Sequence[int], seed: int) -> dict[str, Table]:
    """Outputs for e^{-t} and the impulse at the first and last order with C = e_0; errors at every power of two."""
    shown = [
        {
            "input": kind,
            "n": n,
            TIME: (t := np.linspace(0, 6 if kind == DECAY else 3, 1201)),
            **{f"y {name}": samples(*begin(*system(name, n)), first_state(n), t) for name in NAMES},
        }
        for kind, begin in INPUTS.items()
        for n in dict.fromkeys([orders[0], orders[-1]])
    ]
    every = sorted({*ERROR_ORDERS, *orders})
    errors = [
        {"input": kind, "n": n, **{f"{ERROR} {name}": np.array([output_error(kind, name, n)]) for name in INITS}}
        for kind in INPUTS
        for n in every
    ]
    return {"": stack(shown), "errors": stack(errors)}


def inputs_draw(tables: dict[str, Table]) -> Any:
    """Rows are inputs; outputs at two orders, then the distance from S4 against the order."""
    orders = distinct(tables[""]["n"])
    figure = style.new(3.7 * (len(orders) + 1), 5.8)
    panels = figure.subplots(2, len(orders) + 1, squeeze=False)
    for line, kind in zip(panels, INPUTS, strict=True):
        for axes, n in zip(line, orders, strict=False):
            table = rows(tables[""], n=n, input=kind)
            for name, look in style.STYLES.items():
                axes.plot(table[TIME], table[f"y {name}"], label=name, **look)
            axes.set_title(f"input: {_named(kind)}, n = {n}", fontsize=10)
            axes.set_xlabel(style.TIME, fontsize=9)
            axes.set_ylabel(r"output $y$, $C = e_0$", fontsize=9)
            style.grid(axes)
        _draw_errors(line[-1], rows(tables["errors"], input=kind), kind)
    style.legend_above(figure, panels[0, 0])
    return figure


def _draw_errors(axes: Any, table: Table, kind: str) -> None:
    for name in INITS:
        axes.loglog(table["n"], table[f"{ERROR} {name}"], marker="o", markersize=4, **style.STYLES[name])
    x, y = float(table["n"][1]), float(table[f"{ERROR} S4D"][1])
    text, below = ("1/(2n), converges", 4) if kind == DECAY else ("does not converge", -14)
    style.note(axes, f"S4D: {text}", x, y, offset=(8, below), color=style.VERMILION)
    axes.set_title(f"distance from S4: {_named(kind)}", fontsize=10)
    axes.set_xlabel("order n", fontsize=9)
    axes.set_ylabel(r"$\Vert y_{\mathrm{S4}} - y\Vert_{L^2}$", fontsize=9)
    axes.set_xticks(table["n"], [str(n) for n in table["n"]])
    axes.minorticks_off()
    style.grid(axes)


def _named(kind: str) -> str:
    return "$e^{-t}$" if kind == DECAY else kind
