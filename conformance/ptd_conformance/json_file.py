"""Objects in JSON files, read with the fields that are asked of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ptd import checks


def read(path: Path, what: str, fields: dict[Any, str], remedy: str) -> dict[str, Any]:
    """The object in a file, which should be what.

    Args:
        path, what, remedy: what an error names.
        fields: of each type, the names of those that have to be there, with spaces between; object is any type.

    Raises:
        ValueError: no file, no JSON, no object, or a field is missing or of another type; names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise checks.fail(path.name, what, f"{type(error).__name__}: {error}", remedy) from error
    if not isinstance(found, dict):
        raise checks.fail(path.name, what, f"a {type(found).__name__}", remedy)
    named = [(name, kind) for kind, names in fields.items() for name in names.split()]
    if odd := [name for name, kind in named if name not in found or not isinstance(found[name], kind)]:
        raise checks.fail(path.name, what, f"{', '.join(odd)} missing, or of another type", remedy)
    return found
