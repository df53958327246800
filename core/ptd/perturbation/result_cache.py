"""Results stored on disk under the sha256 of everything that determines them."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def folder() -> Path:
    """The cache folder: PTD_CACHE where set, else the platform's user cache folder (XDG on Linux) / ptd."""
    if chosen := os.environ.get("PTD_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ptd"
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "ptd"


def key(*parts: Any) -> str:
    """sha256 of arrays (type, shape, bytes) and plain values (repr), in order, as 64 hexadecimal digits.

    >>> key(np.zeros(2), 1) == key(np.zeros(2), 1), key(np.zeros(2)) == key(np.zeros((1, 2)))
    (True, False)
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def load(name: str) -> dict[str, NDArray[Any]] | None:
    """The arrays stored under a key, or None where there are none or the file is damaged."""
    try:
        # opened here, because np.load leaves the file it opens to the garbage collector where it is damaged
        with open(folder() / f"{name}.npz", "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {field: stored[field] for field in stored.files}
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def store(name: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays under a key, whole or not at all; an unwritable folder only means no cache."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), suffix=".part", delete=False) as part:
            np.savez(part, allow_pickle=False, **arrays)
        os.replace(part.name, folder() / f"{name}.npz")
    except OSError:
        return
