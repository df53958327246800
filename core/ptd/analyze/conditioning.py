"""kappa(V) and the transfer deviation against ||E||_2 (Yu et al. 2024 sec. 5.3 and app. I)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import hippo
from ..perturbation import Diagonalization, NotConverged, perturb_then_diagonalize
from . import style
from .tables import Table, distinct, rows, stack

RATIO = "||E||_2/||A||_2"
#: Relative sizes of E: of the random control, of the optimised one; and the closed form's rho.
RANDOM_SIZES = np.geomspace(1e-5, 1, 16)
OPTIMISED_SIZES = np.geomspace(1e-3, 0.5, 9)
RHOS = np.geomspace(1e-3, 0.9, 15)
DRAWS = 15

METHODS = {
    "random": {"color": style.ORANGE, "marker": "s", "markersize": 4, "linestyle": "-", "linewidth": 1.0},
    "optimised": {"color": style.GREEN, "marker": "o", "markersize": 5, "linestyle": "-", "linewidth": 1.4},
    "closed form": {"color": style.PURPLE, "marker": "^", "markersize": 4, "linestyle": "--", "linewidth": 1.2},
}


def random(n: int, seed: int) -> Table:
    """Ginibre E at every size: the medians of DRAWS draws, and the draws between which eight tenths lie."""
    A, B = hippo.legs(n)
    norm = np.linalg.norm(A, 2)
    found = [[_solved(A, B, "random", size=r * norm, seed=seed + k) for k in range(DRAWS)] for r in RANDOM_SIZES]
    return stack(_row(n, "random", float(r), draws) for r, draws in zip(RANDOM_SIZES, found, strict=True))


def optimised(n: int, seed: int) -> Table:
    """Optimised E at every size."""
    A, B = hippo.legs(n)
    norm = np.linalg.norm(A, 2)
    found = [_solved(A, B, "optimized", size=r * norm, seed=seed) for r in OPTIMISED_SIZES]
    return stack(_row(n, "optimised", each.relative_perturbation_norm, [each]) for each in found)


def closed_form(n: int) -> Table:
    """The closed form at every rho."""
    found = [_solved(*hippo.legs(n), "closed-form", rho=float(rho)) for rho in RHOS]
    return stack(
        _row(n, "closed form", each.relative_perturbation_norm, [each], float(rho))
        for each, rho in zip(found, RHOS, strict=True)
    )


def _solved(A: Any, B: Any, method: str, **options: Any) -> Diagonalization:
    try:
        return perturb_then_diagonalize(A, B, method=method, cache=method == "optimized", **options)
    except NotConverged as error:
        return error.best  # its max Re Lambda is in the table, and an unstable one has no finite deviation


def _row(n: int, method: str, ratio: float, draws: list[Diagonalization], rho: float = np.nan) -> dict[str, Any]:
    kappas = [found.condition_number for found in draws]
    low, middle, high = np.quantile(kappas, [0.1, 0.5, 0.9])
    deviations = [np.inf if found.deviation is None else found.deviation for found in draws]
    values = {
        RATIO: ratio,
        "rho": rho,
        "kappa(V)": middle,
        "kappa(V), 10th percentile": low,
        "kappa(V), 90th percentile": high,
        "deviation": float(np.median(deviations)),
        "max Re Lambda": float(np.median([found.spectral_abscissa for found in draws])),
    }
    return {"n": n, "method": method} | {name: np.array([value]) for name, value in values.items()}


def data(orders: Sequence[int], seed: int) -> dict[str, Table]:
    """Random, optimised and closed-form E at every order."""
    return {"": stack(table for n in orders for table in (random(n, seed), optimised(n, seed), closed_form(n)))}


def draw(tables: dict[str, Table]) -> Any:
    """kappa against the relative size, one panel per order."""
    orders = distinct(tables[""]["n"])
    figure = style.new(4.0 * len(orders) + 0.4, 4.4)
    panels = figure.subplots(1, len(orders), squeeze=False, sharey=True)[0]
    for axes, n in zip(panels, orders, strict=True):
        table = rows(tables[""], n=n)
        _draw_kappa(axes, table)
        control = rows(table, method="random")
        axes.fill_between(
            control[RATIO],
            control["kappa(V), 10th percentile"],
            control["kappa(V), 90th percentile"],
            color=style.ORANGE,
            alpha=0.25,
            linewidth=0,
        )
        ratio = control[RATIO]
        axes.plot(ratio, 4 * n**1.5 * (1 + 1 / ratio), color="0.5", linewidth=0.8, linestyle="--")
        style.note(axes, r"$4n^{3/2}(1 + 1/\delta)$, Banks et al.", ratio[4], 4 * n**1.5 / ratio[4], color=style.GREY)
        axes.set_title(f"order n = {n}", fontsize=10)
    panels[0].set_ylabel(r"condition number $\kappa(V)$", fontsize=10)
    style.legend_above(figure, panels[0], 3)
    figure.supxlabel(f"relative size of the perturbation, {style.RELATIVE_SIZE}", fontsize=10)
    return figure


def ablation_draw(tables: dict[str, Table]) -> Any:
    """kappa and the deviation against the relative size, and against each other, one row per order."""
    orders = distinct(tables[""]["n"])
    figure = style.new(12.0, 3.6 * len(orders) + 0.5)
    panels = figure.subplots(len(orders), 3, squeeze=False)
    for (sizes, deviations, trade), n in zip(panels, orders, strict=True):
        table = rows(tables[""], n=n)
        _draw_kappa(sizes, table)
        sizes.set_ylabel(r"condition number $\kappa(V)$")
        for name, look in METHODS.items():
            part = rows(table, method=name)
            finite = np.isfinite(part["deviation"])
            deviations.loglog(part[RATIO][finite], part["deviation"][finite], **look)
            trade.loglog(part["kappa(V)"][finite], part["deviation"][finite], **look)
        _note_rho(trade, rows(table, method="closed form"))
        deviations.set_ylabel("transfer deviation (units of time)")
        trade.set_ylabel("transfer deviation (units of time)")
        for axes in (sizes, deviations):
            axes.axvspan(1e-2, 1, color="0.94", zorder=0)
            axes.set_xlabel(style.RELATIVE_SIZE)
        style.note(deviations, "best accuracy\nin the paper", 1.15e-2, deviations.get_ylim()[0] * 1.6)
        control = rows(table, method="random")
        stable = np.isfinite(control["deviation"])
        if stable.any() and not stable.all():
            x, y = (float(control[name][stable][-1]) for name in (RATIO, "deviation"))
            style.note(deviations, "beyond:\nunstable", x, y, offset=(-7, -3), ha="right", color=style.ORANGE)
        trade.set_xlabel(r"condition number $\kappa(V)$")
        for axes in (sizes, deviations, trade):
            axes.set_title(f"n = {n}", fontsize=10)
            style.grid(axes)
    style.legend_above(figure, panels[0, 0], 3)
    return figure


def _draw_kappa(axes: Any, table: Table) -> None:
    for name, look in METHODS.items():
        part = rows(table, method=name)
        label = f"random, median of {DRAWS}" if name == "random" else name
        axes.loglog(part[RATIO], part["kappa(V)"], label=label, **look)
    style.grid(axes)


def _note_rho(axes: Any, table: Table) -> None:
    for k in (0, len(RHOS) // 2, len(RHOS) - 2):
        text = rf"$\rho$ = {float(table['rho'][k]):.2g}"
        style.note(axes, text, table["kappa(V)"][k], table["deviation"][k], offset=(5, 4), color=style.PURPLE)
