"""The report contributors read: each clause on each backend, the worst error as a ratio of the allowed one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from . import clauses
from .clause import CLAUSES, Clause
from .outcome import Outcome, Result
from .products import PRODUCTS
from .record import Record

__all__ = ["Cell", "cell", "clauses", "page", "print_table", "support_table", "with_table"]

#: What the families of clauses are about, by the letter of their ids.
FAMILIES = {
    "K": "Kernels against their definitions",
    "L": "Layers against the reference",
    "M": "Modes: a backend against itself",
    "G": "Gradients",
    "P": "Parameters and files",
    "S": "Models",
    "T": "Training",
    "E": "Bad input",
}

#: Sections that other runs fill: a record may carry tables {title, note, columns, rows} under these names, with or
#: without a picture, PNG in base64.
SECTIONS = {"speed": "Speed", "lra": "Long Range Arena"}

#: An outcome of a clause is the first of these that any of its trials came to.
PRECEDENCE = (Outcome.FAIL, Outcome.EXPECTED_FAIL, Outcome.PASS, Outcome.UNSUPPORTED, Outcome.NOT_RUN)

STYLES = {
    Outcome.PASS: "green",
    Outcome.FAIL: "bold red",
    Outcome.EXPECTED_FAIL: "yellow",
    Outcome.UNSUPPORTED: "dim",
    Outcome.NOT_RUN: "dim",
}

#: Shown where a run has no bound for a clause: narrower products are held to some clauses only.
NOT_ASKED = "\N{EN DASH}"

#: What a made table of a README stands between, by the table's title.
START, END = "<!-- {}: made by nox -s report -->", "<!-- end of {} -->"
SUPPORT, ACCURACIES = "support table", "accuracies"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A clause on a backend: its outcome, worst ratio, all trials behind it, and whether such a run asks for it."""

    outcome: Outcome
    ratio: float | None
    reason: str
    results: tuple[Result, ...]
    asked: bool = True

    @property
    def text(self) -> str:
        """What the cell shows."""
        if not self.asked:
            return NOT_ASKED
        if self.outcome is not Outcome.PASS:
            return self.outcome.value
        return f"{self.ratio:.2f}" if self.ratio else "exact"


def cell(clause: Clause, record: Record) -> Cell:
    """The cell of a clause and a record."""
    found = tuple(result for result in record["results"] if result.clause == clause.id)
    outcomes = [result.outcome for result in found]
    outcome = next((outcome for outcome in PRECEDENCE if outcome in outcomes), Outcome.NOT_RUN)
    ratios = [result.worst.ratio for result in found if result.worst is not None]
    reason = next((result.reason for result in found if result.outcome is outcome and result.reason), "")
    asked = PRODUCTS[record["products"]].covers(clause.id)
    return Cell(outcome, max(ratios, default=None), reason, found, asked)


def records_in(folder: Path) -> list[Path]:
    """A folder's records, runs with narrower products after the one without: torch-h200 before torch-h200-fast."""
    return sorted(folder.glob("*.json"), key=lambda file: file.stem)


def families() -> Iterator[tuple[str, list[Clause]]]:
    """The families in order, each with its clauses."""
    for letter, title in FAMILIES.items():
        yield title, [clause for clause in CLAUSES.values() if clause.id[0] == letter]


def name(record: Record) -> str:
    """A column's heading."""
    words = PRODUCTS[record["products"]].words
    return f"{record['backend']} ({record['device']}{', ' + words if words else ''})"


def print_table(console: Any, records: list[Record], only: Collection[str] = CLAUSES) -> None:
    """The report in a terminal, ptd.console.Lines: one run by the clauses in only, several by families of clauses."""
    from rich.table import Table
    from rich.text import Text

    if len(records) == 1:
        table = Table("clause", "", name(records[0]), caption="worst error as a ratio of the allowed one")
        for title, members in families():
            if not (asked := [clause for clause in members if clause.id in only]):
                continue
            table.add_section()
            table.add_row("", Text(title, "bold"))
            for clause in asked:
                found = cell(clause, records[0])
                table.add_row(clause.id, clause.text, Text(found.text, STYLES[found.outcome]))
    else:
        table = Table(*_support_heading()[:-2], caption="worst: error as a ratio of the allowed one")
        for record in records:
            table.add_row(*_support_row(record)[:-2], end_section=True)
    console.print(table)
    for record in records:
        console.say(f"{name(record)}: {summary(record)} in {record['seconds']} s; {versions(record)}")
        for part, why in record.get("not run", {}).items():
            console.say(f"{name(record)}, {Outcome.NOT_RUN.value}: {part} ({why})")


def summary(record: Record) -> str:
    """How many trials came to what."""
    counts = {outcome: sum(r.outcome is outcome for r in record["results"]) for outcome in Outcome}
    return ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)


def versions(record: Record) -> str:
    """Packages and platform of a run."""
    return ", ".join(f"{package} {version}" for package, version in record["versions"].items())


def page(records: list[Record], **sections: list[dict[str, Any]]) -> str:
    """The report as one self-contained HTML page; sections holds tables, by the names in SECTIONS, besides records'."""
    from jinja2 import Environment, select_autoescape

    source = (files(__package__) / "templates" / "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        records=records,
        families=list(families()),
        sections=[(title, _tables(records, key, sections)) for key, title in SECTIONS.items()],
        cell=cell,
        name=name,
        summary=summary,
        versions=versions,
        Outcome=Outcome,
    )


def _tables(records: list[Record], key: str, sections: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [table for r in records for table in r.get(key, ())] + sections.get(key, [])


def support_table(records: Iterable[Record]) -> str:
    """The README's table: runs as rows, families as columns, in Markdown."""
    heading = _support_heading()
    return markdown([heading, *map(_support_row, records)])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its heading."""
    heading, *others = rows
    lines = [heading, ["---"] * len(heading), *others]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in lines)


def _support_heading() -> list[str]:
    short = (title.partition(":")[0].partition(" against ")[0] for title in FAMILIES.values())
    return ["backend", *short, "dtypes", "versions"]


def _support_row(record: Record) -> list[str]:
    members = (_family([cell(clause, record) for clause in group]) for _, group in families())
    return [name(record), *members, ", ".join(record["dtypes"]), versions(record)]


def with_table(text: str, title: str, table: str) -> str:
    """text with the part between a table's markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    first, last = START.format(title), END.format(title)
    head, start, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not (start and end):
        raise ValueError(f"readme: expected the lines {first} and {last}, got a text without them; put them back")
    return f"{head}{first}\n\n{table}\n\n{last}{tail}"


def _family(cells: list[Cell]) -> str:
    """A family's cell: the clauses that the run was asked for by outcome, and the worst ratio of those that pass."""
    cells = [c for c in cells if c.asked]
    if not cells:
        return NOT_ASKED
    counts = {outcome: sum(c.outcome is outcome for c in cells) for outcome in PRECEDENCE}
    ratios = [c.ratio for c in cells if c.outcome is Outcome.PASS and c.ratio]
    parts = [f"{count} {outcome.value}" for outcome, count in counts.items() if count]
    return ", ".join(parts) + (f"; worst {max(ratios):.2f}" if ratios else "")
