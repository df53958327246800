"""The list of figures, and the one function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from .. import checks
from ..extras import require
from . import conditioning, gain, outputs, pseudospectra, regression, style
from .tables import Table, write


@dataclass(frozen=True)
class Figure:
    """A figure of the catalogue.

    Attributes:
        title: what it shows, in one line.
        data: from orders and seed to its tables by suffix; "" is the main one.
        draw: from the tables to a matplotlib figure.
        orders: the orders n it shows unless told others; empty where its order is the paper's alone.
    """

    title: str
    data: Callable[[Sequence[int], int], dict[str, Table]]
    draw: Callable[[dict[str, Table]], Any]
    orders: tuple[int, ...] = ()


FIGURES = {
    "gain": Figure("|G(iw)| with the last spike", gain.data, gain.draw, (8, 16, 32, 64)),
    "fourier": Figure("outputs for single Fourier modes", outputs.fourier_data, outputs.fourier_draw, (8, 16)),
    "inputs": Figure("outputs for e^-t and an impulse", outputs.inputs_data, outputs.inputs_draw, (8, 64)),
    "conditioning": Figure("kappa against ||E||", conditioning.data, conditioning.draw, (8, 16, 32)),
    "ablation": Figure("kappa and deviation against ||E||", conditioning.data, conditioning.ablation_draw, (32,)),
    "pseudospectra": Figure("pseudospectra of A and A + E", pseudospectra.data, pseudospectra.draw, (16,)),
    "regression": Figure("frequency regression past the spike", regression.data, regression.draw),
}


def analyze(
    out: str | Path = "analysis",
    only: Sequence[str] = (),
    orders: Sequence[int] = (),
    seed: int = 0,
    report: Callable[[str, str], None] = lambda name, doing: None,
) -> list[Path]:
    """Make figures: for each its tables as CSV, then PNG and SVG.

    Args:
        out: folder, made where missing.
        only: names in FIGURES; all if empty.
        orders: orders n >= 4 in place of each figure's own; "regression" keeps the paper's 16 and takes none.
        seed: of random perturbations, of the solver's starts and of the regression, >= 0.
        report: called with a figure's name and what is being done, before it is done.

    Returns:
        The files written, in order.

    Raises:
        ValueError: an unknown figure, or an order or seed out of range.
        ImportError: matplotlib is missing; names the pip command.
    """
    _check(only, orders, seed)
    require("matplotlib", "analyze", "analyze")
    files: list[Path] = []
    for name, figure in FIGURES.items():
        if only and name not in only:
            continue
        report(name, "computing")
        # many small matrices: a second BLAS thread only costs
        with threadpool_limits(1, "blas"):
            tables = figure.data(tuple(orders) if len(orders) and figure.orders else figure.orders, seed)
        for suffix, table in tables.items():
            files.append(Path(out) / (f"{name}-{suffix}.csv" if suffix else f"{name}.csv"))
            write(files[-1], table)
        report(name, "drawing")
        files += style.save(figure.draw(tables), Path(out) / name)
        report(name, "done")
    return files


def _check(only: Sequence[str], orders: Sequence[int], seed: int) -> None:
    for name in only:
        checks.choice("only", name, FIGURES)
    if isinstance(orders, int):
        raise checks.fail("orders", "a sequence of orders", orders, f"pass [{orders}]")
    for n in orders:
        checks.positive_integer("n", n)
        if n < 4:
            raise checks.fail("n", "orders >= 4", n, "an optimised E pairs its eigenvalues from there on")
    if len(set(orders)) < len(orders):
        raise checks.fail("n", "each order once", list(orders))
    if len(orders) and only and not any(FIGURES[name].orders for name in only):
        names = ", ".join(only)
        raise checks.fail("n", f"no orders for {names}, whose order is the paper's", list(orders), "leave them out")
    checks.seed(seed)
