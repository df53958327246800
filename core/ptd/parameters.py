"""Parameter files: one safetensors file that every backend reads and writes.

A file holds the real leaves and, as metadata, the version of this specification and the description of the layer or
model they belong to. Files are replaced atomically: an interrupted save leaves the old file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from . import checks
from .inputs import Input
from .layers import LAYERS, Layer
from .model import SequenceModel

#: Version of names, shapes and meaning of the leaves. A reader refuses files of another one.
SPEC_VERSION = "1"

#: Names in files of what is described besides layers.
KINDS: dict[type, str] = {SequenceModel: "sequence_model", Input: "input"}


def save(path: str | Path, description: Layer | SequenceModel, params: Mapping[str, Any]) -> None:
    """Write parameters and their description to a file, atomically.

    Args:
        path: the file; replaced if it exists.
        description: the layer or model.
        params: its leaves, as host arrays.

    Raises:
        ValueError: params are not the finite real leaves of description. Nothing is written then.
    """
    if not isinstance(description, (Layer, SequenceModel)):
        raise checks.fail("description", "a layer or a SequenceModel", repr(description))
    leaves = {name: checks.host(name, value) for name, value in params.items()}
    description.check(leaves)
    metadata = {"ptd_spec": SPEC_VERSION, "description": json.dumps(to_json(description))}
    replace_file(Path(path), encode(leaves, metadata))


def load(path: str | Path) -> tuple[Layer | SequenceModel, dict[str, NDArray]]:
    """Read what save wrote.

    Returns:
        The description and its leaves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, foreign, of another version, or does not fit its description.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        leaves = decode(data)
        metadata = _metadata(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise checks.fail(
            "path",
            "a complete safetensors file",
            f"{path.name}: {error}",
            "it is truncated or not ours: use another copy",
        ) from error
    if "ptd_spec" not in metadata:
        raise checks.fail("path", "a file written by ptd.save", f"{path.name} without its metadata", "convert it first")
    if metadata["ptd_spec"] != SPEC_VERSION:
        raise checks.fail(
            "path",
            f"specification version {SPEC_VERSION}",
            f"version {metadata['ptd_spec']}",
            "use the ptd that wrote it",
        )
    values = _description(metadata)
    checks.choice("kind", values.get("kind"), (*LAYERS, KINDS[SequenceModel]))
    description = from_json(values)
    description.check(leaves)
    return description, leaves


def to_json(description: Layer | SequenceModel | Input) -> dict[str, Any]:
    """A description as plain JSON values."""
    values = {f.name: getattr(description, f.name) for f in dataclasses.fields(description)}
    kind = description.kind if isinstance(description, Layer) else KINDS[type(description)]
    return {"kind": kind} | {n: to_json(v) if isinstance(v, (Layer, Input)) else v for n, v in values.items()}


def from_json(values: Mapping[str, Any]) -> Any:
    """The description that to_json wrote.

    Raises:
        ValueError: an unknown kind or field.
    """
    fields = {n: from_json(v) if isinstance(v, Mapping) else v for n, v in values.items() if n != "kind"}
    kinds: dict[str, type] = {**LAYERS} | {kind: type_ for type_, kind in KINDS.items()}
    checks.choice("kind", values.get("kind"), kinds)
    try:
        return kinds[values["kind"]](**fields)
    except TypeError as error:
        raise checks.fail(
            "description", f"the fields of {values['kind']}", error, "the file is from another version"
        ) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write data beside path, then move it there in one step; a symbolic link stays, and what it leads to is replaced.

    Raises:
        ValueError: there is something else than a file: a folder, a device, a pipe. It stays as it is.
    """
    check_replaceable("path", path)
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_replaceable(argument: str, path: Path) -> None:
    """Raise unless path is a file, or none yet."""
    if path.exists() and not path.is_file():
        got = "a folder" if path.is_dir() else "a device or pipe"
        raise checks.fail(argument, "a file to write or replace", f"{got}, {path}", "pass a file's name")


def _metadata(data: bytes) -> dict[str, str]:
    """The safetensors header's free-form part (the numpy reader does not return it)."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {})


def _description(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    text = metadata.get("description", "none")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, Mapping):
        raise checks.fail("path", "a description in JSON", repr(text[:40]), "it is damaged: use another copy")
    return values
