"""Checkpoints of a run: arrays and a few plain values in a folder, replaced whole or not at all.

The arrays lie end to end in pieces named by their content; checkpoint.json names the pieces and is replaced last, in
one step. Whatever moment a save is killed at, the folder holds the old checkpoint or the new one. Pieces are small
enough for tools that move files of limited size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ptd.parameters import replace_file

from .. import json_file

PIECE = 15 << 20
MANIFEST = "checkpoint.json"


def save(folder: Path, arrays: Mapping[str, NDArray], values: Mapping[str, Any]) -> None:
    """Replace the folder's checkpoint.

    Args:
        folder: made if missing.
        arrays: by name.
        values: whatever JSON can hold.
    """
    data = encode({name: np.asarray(array, order="C") for name, array in arrays.items()})
    pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
    names = [f"checkpoint-{hashlib.sha256(piece).hexdigest()[:32]}.piece" for piece in pieces]
    for name, piece in zip(names, pieces, strict=True):
        if not (folder / name).exists():
            replace_file(folder / name, piece)
    replace_file(folder / MANIFEST, json.dumps({"pieces": names, "values": values}, indent=1).encode())
    # Only now is the old one no longer needed; a killed save leaves unfinished files with a leading dot.
    for path in [*folder.glob("checkpoint-*.piece"), *folder.glob(".checkpoint*")]:
        if path.name not in names:
            path.unlink(missing_ok=True)


def load(folder: Path) -> tuple[dict[str, NDArray], dict[str, Any]] | None:
    """Arrays and values of the folder's checkpoint, or None if it has none.

    Raises:
        ValueError: a piece is missing or damaged, or the manifest is; it is named.
    """
    if (found := _manifest(folder)) is None:
        return None
    names, values = found
    data = b"".join(_piece(folder / name) for name in names)
    try:
        return decode(data), values
    except SafetensorError as error:
        raise ValueError(f"{MANIFEST}: expected pieces that fit together, got {error}; use a copy") from error


def values_of(folder: Path) -> dict[str, Any] | None:
    """The values of the folder's checkpoint without its arrays, or None if it has none.

    Raises:
        ValueError: the manifest is damaged.
    """
    found = _manifest(folder)
    return None if found is None else found[1]


def plain(values: Any) -> Any:
    """values as they come back from a file."""
    return json.loads(json.dumps(values))


def _manifest(folder: Path) -> tuple[list[str], dict[str, Any]] | None:
    """The names of the pieces, and the values."""
    if not (folder / MANIFEST).exists():
        return None
    what, remedy = f"the checkpoint of {folder.name}", "it is damaged, use a copy"
    manifest = json_file.read(folder / MANIFEST, what, {list: "pieces", dict: "values"}, remedy)
    return manifest["pieces"], manifest["values"]


def _piece(path: Path) -> bytes:
    if not path.exists():
        raise ValueError(f"{path.name}: expected a piece of the checkpoint, got no file; copy the whole folder")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:32] not in path.name:
        raise ValueError(f"{path.name}: expected the content its name says, got {len(data)} other bytes; use a copy")
    return data
