"""The record of one conformance run: a JSON file per backend and device."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ptd import SPEC_VERSION, checks
from ptd.contract import Backend
from ptd.parameters import replace_file

from . import json_file
from .clause import CLAUSES
from .outcome import Done, Measurement, Outcome, Result
from .products import FULL, PRODUCTS, Products

Record = dict[str, Any]


#: What the report and a run that goes on read of every record; others have what older ones lack.
FIELDS: dict[Any, str] = {str: "spec backend device platform note date", dict: "versions unsupported"}
FIELDS |= {list: "dtypes results", int | float: "seconds"}

#: What a run must share with a record to go on with it. The specification's version is held by read.
SAME = ("backend", "device", "versions", "products")


def of(
    backend: Backend, results: Iterable[Result], seconds: float, note: str = "", products: Products = FULL
) -> Record:
    """The record of a run: what ran where, in which versions and settings, and every result."""
    return head(backend, products) | _body(results, seconds, note)


def of_clauses(head: Record, done: Mapping[str, Done], seconds: float, note: str = "") -> Record:
    """The record of the clauses that have run, in whatever order, with the time of each."""
    suite = [done[clause] for clause in CLAUSES if clause in done]
    times = {each.clause: round(each.seconds, 3) for each in suite if each.seconds is not None}
    return head | {"clause seconds": times} | _body([r for each in suite for r in each.results], seconds, note)


def head(backend: Backend, products: Products = FULL) -> Record:
    """What runs where, in which versions and settings."""
    return {
        "spec": SPEC_VERSION,
        "backend": backend.name,
        "device": backend.device(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": backend.versions(),
        "dtypes": list(backend.dtypes),
        "unsupported": dict(backend.unsupported),
        "products": products.name,
        "not run": dict(backend.not_run),
    }


def _body(results: Iterable[Result], seconds: float, note: str) -> Record:
    return {
        "note": note,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "results": [_row(result) for result in results],
    }


def clauses(record: Record) -> dict[str, Done]:
    """The clauses that a record, as read gives it, has results of."""
    found: dict[str, list[Result]] = {}
    for result in record["results"]:
        found.setdefault(result.clause, []).append(result)
    times = record.get("clause seconds", {})
    return {clause: Done(clause, tuple(results), times.get(clause)) for clause, results in found.items()}


def check_same(record: Record, head: Record) -> None:
    """Raise unless a run with this head may go on with a record: ValueError, one line that says what differs."""
    if differing := [name for name in SAME if record[name] != head[name]]:
        ours, theirs = (", ".join(f"{name} {_words(made[name])}" for name in differing) for made in (head, record))
        raise ValueError(f"resume: expected a record of {ours}, got one of {theirs}; write to another file with --json")


def _words(value: Any) -> str:
    return " ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def write(path: Path, record: Record) -> None:
    """Write a record, atomically."""
    rows = ",\n  ".join(json.dumps(row) for row in record["results"])
    head = json.dumps({name: value for name, value in record.items() if name != "results"}, indent=1)
    replace_file(path, f'{head[:-2]},\n "results": [\n  {rows}\n ]\n}}\n'.encode())


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: not a record of this specification version, a field is missing or of another type, or a result has
            an unknown outcome.
    """
    what, remedy = f"a conformance record of spec {SPEC_VERSION}", "run the suite again"
    record = json_file.read(path, what, FIELDS, remedy)
    if record["spec"] != SPEC_VERSION:
        raise checks.fail(path.name, what, f"one of spec {record['spec']}", remedy)
    try:
        checks.choice("products", record.get("products", FULL.name), PRODUCTS)
        return parsed(record)
    except (ValueError, KeyError, TypeError) as error:
        raise checks.fail(path.name, what, error, remedy) from error


def parsed(record: Record) -> Record:
    """A record with its rows as results."""
    return {"products": FULL.name} | record | {"results": [_result(row) for row in record["results"]]}


def _row(result: Result) -> Record:
    row: Record = {"clause": result.clause, "subject": result.subject, "dtype": result.dtype}
    row["outcome"] = result.outcome.value
    if result.worst is not None:
        # JSON has no infinity.
        row |= {"ratio": min(float(f"{result.worst.ratio:.3g}"), 1e300), "label": result.worst.label}
    return row | ({"reason": result.reason} if result.reason else {})


def _result(row: Record) -> Result:
    worst = Measurement(row.get("label", ""), row["ratio"]) if "ratio" in row else None
    outcome = Outcome(row["outcome"])
    return Result(row["clause"], row["subject"], row["dtype"], outcome, worst, row.get("reason", ""))
