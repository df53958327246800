"""Checkpoint files of other programs, read into mappings of names to arrays."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .. import checks
from .arrays import flatten


def read(path: str | Path) -> dict[str, Any]:
    """The arrays of a checkpoint file, by flat names as ptd.importers.arrays.flatten has them.

    Args:
        path: .safetensors and .npz need nothing else; .pt, .pth, .ckpt and .bin need torch, .msgpack needs flax. No
            code in a file is run: of torch's files only tensors and plain containers are read.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the framework that wrote it is not installed.
        ValueError: the file is of another kind, damaged, or holds Python objects.
    """
    path = Path(path)
    if path.is_dir():
        remedy = "restore it in the program that wrote it and pass the tree of arrays"
        raise checks.fail("path", "a file", f"a folder, {path.name}", remedy)
    if path.suffix not in READERS:
        raise checks.fail("path", f"a file {', '.join(READERS)}", path.name, "or pass a mapping of names to arrays")
    if not path.exists():
        raise FileNotFoundError(f"path: expected a checkpoint, got no file {path}; check the name")
    tree = READERS[path.suffix](path)
    if not isinstance(tree, Mapping):
        remedy = "save model.state_dict() and import that"
        raise checks.fail("path", "named arrays", f"{path.name} with a {type(tree).__name__}", remedy)
    inner = tree.get("state_dict")  # Lightning keeps optimisers and settings beside it
    return flatten(inner if isinstance(inner, Mapping) else tree)


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:
        raise _damaged(path, error) from error


def _npz(path: Path) -> Any:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise _without("torch", path) from error
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickle protocols: errors follow
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise _damaged(path, error) from error
        remedy = "torch would run its code to read them: load it in its own program and save model.state_dict()"
        raise checks.fail("path", "tensors alone", f"{path.name} with Python objects", remedy) from error
    except Exception as error:  # whatever bytes that are none of its kind lead to
        raise _damaged(path, error) from error


def _msgpack(path: Path) -> Any:
    try:
        from flax import serialization
    except ImportError as error:
        raise _without("flax", path) from error
    try:
        return serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack's own, whatever they are
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return checks.fail("path", f"a complete {path.suffix} file", f"{path.name}: {said}", "use another copy")


def _without(framework: str, path: Path) -> ImportError:
    remedy = f"pip install {framework}, or save the arrays as .npz where it is installed"
    return ImportError(f"path: expected {framework}, which reads {path.suffix}, got none; {remedy}")


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".ckpt": _torch,
    ".bin": _torch,
    ".msgpack": _msgpack,
}
