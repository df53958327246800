"""Objects in JSON files, read with the fields that are asked of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ptd import checks

#: Files that are taken for each other: a field that only one kind has, what it is, and what reads it.
KINDS = {
    "spec": ("a conformance record", "ptd report reads it"),
    "lra": ("the record of a training run", "ptd conformance --lra --results FOLDER reads it"),
    "pieces": (
        "the checkpoint of a training run",
        "ptd train --resume reads it, ptd conformance --lra --results FOLDER the record beside it",
    ),
    "by_amplitude": ("a result of ptd robustness", "ptd report FOLDER reads it in FOLDER/lra"),
    "figures": ("a record of ptd bench", "ptd report FOLDER reads it in FOLDER/speed"),
}


def read(path: Path, what: str, fields: dict[Any, str], remedy: str) -> dict[str, Any]:
    """The object in a file, which should be what.

    Args:
        path, what, remedy: what an error names.
        fields: of each type, the names of those that have to be there, with spaces between; object is any type.

    Raises:
        ValueError: no file, no JSON, no object, one of another kind, or a field is missing or of another type; names
            the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise checks.fail(path.name, what, f"no file {path}", "pass the path of one") from error
    except ValueError as error:
        raise checks.fail(path.name, what, f"{type(error).__name__}: {error}", remedy) from error
    if not isinstance(found, dict):
        raise checks.fail(path.name, what, f"a {type(found).__name__}", remedy)
    named = [(name, kind) for kind, names in fields.items() for name in names.split()]
    if odd := [name for name, kind in named if name not in found or not isinstance(found[name], kind)]:
        asked = {name for name, _ in named}
        for kind in (KINDS[field] for field in KINDS if field in found and field not in asked):
            raise checks.fail(path.name, what, *kind)
        raise checks.fail(path.name, what, f"{', '.join(odd)} missing, or of another type", remedy)
    return found
