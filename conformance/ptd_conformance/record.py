"""The record of one conformance run: a JSON file per backend and device."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptd import SPEC_VERSION
from ptd.contract import Backend
from ptd.parameters import replace_file

from .outcome import Measurement, Outcome, Result
from .products import FULL, Products

Record = dict[str, Any]


def of(
    backend: Backend, results: Iterable[Result], seconds: float, note: str = "", products: Products = FULL
) -> Record:
    """The record of a run: what ran where, in which versions and settings, and every result."""
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
        "note": note,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "results": [_row(result) for result in results],
    }


def write(path: Path, record: Record) -> None:
    """Write a record, atomically."""
    rows = ",\n  ".join(json.dumps(row) for row in record["results"])
    head = json.dumps({name: value for name, value in record.items() if name != "results"}, indent=1)
    replace_file(path, f'{head[:-2]},\n "results": [\n  {rows}\n ]\n}}\n'.encode())


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: not a record of this specification version, or a result with an unknown outcome.
    """
    try:
        record = json.loads(path.read_text())
        spec = record["spec"]
        results = [_result(row) for row in record["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"path: expected a conformance record, got {path.name}: {error}; run the suite again"
        ) from error
    if spec != SPEC_VERSION:
        raise ValueError(f"path: expected spec {SPEC_VERSION}, got {path.name} of spec {spec}; run the suite again")
    return {"products": FULL.name} | record | {"results": results}


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
