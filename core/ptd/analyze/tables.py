"""Numbers of a figure: columns of equal length, written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..parameters import replace_file

#: Columns by their headings, which give the unit; all of one length.
Table = dict[str, NDArray[Any]]


def stack(tables: Iterable[Mapping[str, Any]]) -> Table:
    """Tables of the same headings under each other; a number or word stands for a whole column.

    >>> stack([{"n": 8, "w": np.arange(2.0)}, {"n": 16, "w": np.ones(1)}])["n"].tolist()
    [8, 8, 16]
    """
    columns: dict[str, list[NDArray[Any]]] = {}
    for table in tables:
        length = max(np.size(column) for column in table.values())
        for name, column in table.items():
            columns.setdefault(name, []).append(np.broadcast_to(column, length))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def rows(table: Table, **values: Any) -> Table:
    """The rows where the named columns have the given values.

    >>> rows({"n": np.array([8, 16]), "kappa": np.array([3.3, 5.6])}, n=16)["kappa"].tolist()
    [5.6]
    """
    kept = np.logical_and.reduce([table[name] == value for name, value in values.items()])
    return {name: column[kept] for name, column in table.items()}


def distinct(column: NDArray[Any]) -> list[Any]:
    """The values of a column, each once, in the order of their first appearance."""
    return list(dict.fromkeys(column.tolist()))


def write(path: Path, table: Table) -> None:
    """Write a table as CSV, nine digits a number, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([f"{x:.9g}" if isinstance(x, float) else x for x in row] for row in _python(table))
    replace_file(path, text.getvalue().encode())


def _python(table: Table) -> Iterable[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in table.values()), strict=True)
