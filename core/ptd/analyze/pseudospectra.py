"""Pseudospectra of HiPPO-LegS and of A + E, with the eigenvalues (Yu et al. 2024 sec. 4).

z belongs to the eps-pseudospectrum of A where a perturbation of norm eps makes it an eigenvalue:
||(z - A)^{-1}|| > 1/eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import hippo, transfer
from . import style
from .systems import closed_form, optimised
from .tables import Table, distinct, rows, stack

Array = NDArray[Any]
RE, IM = "Re z [1/time]", "Im z [rad per unit of time]"
SIZE = "eps/||A||_2"
POINTS = (70, 50)
#: Of log10 eps/||A||_2; finer where perturbations of practical size live.
LEVELS = (-10, -8, -6, -5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0)


def matrices(n: int) -> dict[str, tuple[Array, Array]]:
    """A and two perturbations of it, each with its eigenvalues; those of A are -1 ... -n exactly."""
    A, _ = hippo.legs(n)
    found = {"A + E, optimised": optimised(n), "A + E, closed form": closed_form(n)}
    perturbed = {name: (A + each.E, each.Lambda) for name, each in found.items()}
    return {"A": (A, -1.0 - np.arange(n) + 0j), **perturbed}


def data(orders: Sequence[int], seed: int) -> dict[str, Table]:
    """eps = 1/||(z - M)^{-1}||_2 on a grid of the upper half-plane, relative to ||A||_2; and the eigenvalues."""
    grids, spectra = [], []
    for n in orders:
        chosen = matrices(n)
        norm = np.linalg.norm(chosen["A"][0], 2)
        z = _points(np.concatenate([Lambda for _, Lambda in chosen.values()]))
        for name, (M, Lambda) in chosen.items():
            eps = 1 / transfer.resolvent_norm(M, z) / norm
            grids.append({"n": n, "matrix": name, RE: z.real, IM: z.imag, SIZE: eps})
            size = np.linalg.norm(M - chosen["A"][0], 2) / norm
            spectra.append({"n": n, "matrix": name, "||E||_2/||A||_2": size, RE: Lambda.real, IM: Lambda.imag})
    return {"": stack(grids), "eigenvalues": stack(spectra)}


def _points(eigenvalues: Array) -> Array:
    low, high, top = eigenvalues.real.min(), eigenvalues.real.max(), eigenvalues.imag.max()
    margin = 0.25 * (high - low)
    re, im = np.linspace(low - margin, high + 1.5 * margin, POINTS[0]), np.linspace(0, 1.25 * top, POINTS[1])
    return (re[:, None] + 1j * im).ravel()


def draw(tables: dict[str, Table]) -> Any:
    """Contours of log10 eps/||A||, mirrored to the lower half-plane: the matrices are real."""
    orders, names = distinct(tables[""]["n"]), distinct(tables[""]["matrix"])
    figure = style.new(11.5, 3.9 * len(orders) + 0.4)
    panels = figure.subplots(len(orders), len(names), squeeze=False, sharex="row", sharey="row")
    for line, n in zip(panels, orders, strict=True):
        for axes, name in zip(line, names, strict=True):
            contours = _contours(axes, rows(tables[""], n=n, matrix=name))
            spectrum = rows(tables["eigenvalues"], n=n, matrix=name)
            axes.plot(spectrum[RE], spectrum[IM], "o", color=style.VERMILION, markersize=3.5, markeredgewidth=0)
            axes.axvline(0, color="white", linewidth=0.8)
            size = float(spectrum["||E||_2/||A||_2"][0])
            title = f"{name}, n = {n}" + (rf", $\Vert E\Vert_2/\Vert A\Vert_2$ = {size:.2g}" if size else "")
            axes.set_title(title, fontsize=9)
            axes.set_xlabel(r"Re $z$ (1/time)", fontsize=9)
        line[0].set_ylabel(r"Im $z$ (rad per unit of time)", fontsize=9)
    label = r"$\log_{10}\,\varepsilon/\Vert A\Vert_2$, the size of $E$ that makes $z$ an eigenvalue"
    figure.colorbar(contours, ax=panels, label=label, ticks=LEVELS, shrink=0.9, pad=0.015)
    return figure


def _contours(axes: Any, table: Table) -> Any:
    re, im, eps = (table[name].reshape(POINTS) for name in (RE, IM, SIZE))
    re, im, eps = (np.concatenate([x[:, :0:-1] * s, x], axis=1) for x, s in ((re, 1), (im, -1), (eps, 1)))
    from matplotlib.colors import BoundaryNorm

    depth = np.log10(np.maximum(eps, 1e-300))
    axes.contour(re, im, depth, levels=LEVELS, colors="white", linewidths=0.4, linestyles="solid")
    shades = BoundaryNorm(LEVELS, 256, extend="both")
    return axes.contourf(re, im, depth, levels=LEVELS, norm=shades, cmap="cividis", extend="both")
