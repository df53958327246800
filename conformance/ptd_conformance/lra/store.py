"""Data sets made once: a folder of plain .npy files with checksums, named by what it was made from.

    ROOT/made/TASK-KEY/manifest.json, inputs.npy, targets.npy, ...

KEY is the start of the sha256 of the specification, the manifest's "made_from". A folder is complete or not there: it
grows under another name. It may be copied anywhere; nothing in it names a place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptd.parameters import replace_file

from .. import json_file

FORMAT = 1
#: What every manifest says.
FIELDS = {int: "format d_input", str: "task layout", dict: "made_from splits files"}
ENVIRONMENT = "PTD_DATA"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Samples as a learner's place takes them."""

    inputs: NDArray
    targets: NDArray
    lengths: NDArray | None


@dataclass(frozen=True)
class DataSet:
    """A made data set, checked.

    Attributes:
        task: its task's name.
        key: of its folder.
        d_input: input features, or the vocabulary's size.
        manifest: all that the folder says about itself.
        splits: train, validation and test.
    """

    task: str
    key: str
    d_input: int
    manifest: Mapping[str, Any]
    splits: Mapping[str, Split]


def root(given: str | Path | None = None) -> Path:
    """The data folder: the argument, else the environment's PTD_DATA.

    Raises:
        ValueError: neither is given.
    """
    found = given or os.environ.get(ENVIRONMENT)
    if not found:
        raise ValueError(f"root: expected a data folder, got none; pass --root FOLDER or set {ENVIRONMENT}")
    return Path(found)


def key(task: str, made_from: Mapping[str, Any]) -> str:
    """The name of a set's folder: TASK-KEY."""
    text = json.dumps({"format": FORMAT, "task": task, **made_from}, sort_keys=True)
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Draft:
    """A set that is being made, block by block; a new Draft of the same name goes on where the last one stopped."""

    def __init__(self, base: Path, task: str, made_from: Mapping[str, Any]):
        self.task, self.made_from = task, dict(made_from)
        self.final = base / "made" / key(task, made_from)
        self.folder = self.final.with_name(f".{self.final.name}.partial")
        self._progress = self.folder / "blocks.json"

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.memmap:
        """The memory-mapped array of a file, as an earlier run left it."""
        path = self.folder / f"{name}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and self._progress.exists():
            found = np.lib.format.open_memmap(path, mode="r+")
            if found.shape == shape and found.dtype == dtype:
                return found
        self._progress.unlink(missing_ok=True)
        made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        _fill_holes(path)
        return made

    def finished(self) -> set[int]:
        """Numbers of the blocks that are on disk."""
        return set(json.loads(self._progress.read_text(encoding="utf-8"))) if self._progress.exists() else set()

    def mark(self, block: int, *arrays: np.memmap) -> None:
        """Note a block as done, after its arrays have reached the disk."""
        for array in arrays:
            array.flush()
        replace_file(self._progress, json.dumps(sorted(self.finished() | {block})).encode())

    def finish(self, sizes: Mapping[str, int], **facts: Any) -> Path:
        """Checksum every file, write the manifest, and give the folder its name, in the place of a damaged set.

        Args:
            sizes: samples of each split, in the order in which they lie in the files.
            facts: layout, d_input and whatever the layout needs.
        """
        files = {path.name: describe(path) for path in sorted(self.folder.glob("*.npy"))}
        manifest = {"format": FORMAT, "task": self.task, "made_from": self.made_from, "splits": dict(sizes)} | facts
        replace_file(self.folder / "manifest.json", json.dumps(manifest | {"files": files}, indent=1).encode())
        # Only now are the notes on blocks no longer needed; a killed maker may have left unfinished ones.
        for path in self.folder.iterdir():
            if path.name not in files and path.name != "manifest.json":
                path.unlink()
        self._take_place()
        return self.final

    def _take_place(self) -> None:
        old = self.final.with_name(f".{self.final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.final.exists():
            self.final.rename(old)
        self.folder.rename(self.final)
        shutil.rmtree(old, ignore_errors=True)


def _fill_holes(path: Path) -> None:
    """Take the room of a file that was made with holes: a memory map that finds the disk full kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    size = path.stat().st_size
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # the file system cannot
            return
        path.unlink()
        expected = f"{path.name}: expected room for {size} bytes in {path.parent}"
        raise OSError(f"{expected}, got {error}; make room or use another --root") from error


def there(base: Path, task: str, made_from: Mapping[str, Any], say: Callable[[str], None]) -> Path | None:
    """The set if it is there and whole; None, and why is said, if it has to be made again."""
    draft = Draft(base, task, made_from)
    if not draft.final.exists():
        return None
    try:
        check(draft.final)
    except ValueError as error:
        say(f"{error}: that is done now")
        return None
    shutil.rmtree(draft.folder, ignore_errors=True)
    say(f"{draft.final.name}: already there, every checksum matches")
    return draft.final


def write(
    base: Path,
    task: str,
    made_from: Mapping[str, Any],
    arrays: Mapping[str, NDArray],
    sizes: Mapping[str, int],
    **facts: Any,
) -> Path:
    """Write a set that is in memory; see Draft.finish."""
    draft = Draft(base, task, made_from)
    shutil.rmtree(draft.folder, ignore_errors=True)
    draft.folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(draft.folder / f"{name}.npy", array)
    return draft.finish(sizes, **facts)


def describe(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def made(base: Path, task: str | None = None) -> list[Path]:
    """Folders of finished sets, of one task or all."""
    folders = sorted((base / "made").glob("[!.]*/manifest.json"))
    return [path.parent for path in folders if task is None or path.parent.name.rpartition("-")[0] == task]


def find(base: Path, task: str) -> Path:
    """The folder of a task's set.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = made(base, task)
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        remedy = "remove all but one" if found else f"ptd data make {task} --root {base}"
        raise ValueError(f"{task}: expected one made set under {base / 'made'}, got {got}; {remedy}")
    return found[0]


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a made set whose files are all as they were written.

    Raises:
        ValueError: a file is missing, truncated, changed or foreign; it is named.
    """
    manifest = json_file.read(folder / "manifest.json", f"the manifest of {folder.name}", FIELDS, "make the set again")
    files, named, format_ = manifest["files"], key(manifest["task"], manifest["made_from"]), manifest["format"]
    if format_ != FORMAT or named != folder.name:
        raise ValueError(f"{folder.name}: expected the set {named} of format {FORMAT}, got format {format_}; remake it")
    if missing := _unsaid(manifest):
        raise ValueError(f"{folder.name}: expected a manifest with {missing}, got one without; make the set again")
    for name, expected in files.items():
        _check_file(folder / name, expected)
    for path in folder.iterdir():
        if path.name not in files and path.name != "manifest.json":
            raise ValueError(f"{folder.name}: expected the manifest's files, got also {path.name}; remove it")
    return manifest


def _unsaid(manifest: Mapping[str, Any]) -> str:
    """What load needs for a manifest's layout and does not find, or ""."""
    if manifest["layout"] not in LAYOUTS:
        return f"a layout of {', '.join(LAYOUTS)}"
    needed = () if manifest["layout"] == "dense" else ("length", "pad", "end")
    return ", ".join(name for name in needed if name not in manifest)


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    name = f"{path.parent.name}/{path.name}"
    if not path.exists():
        raise ValueError(f"{name}: expected a file, got none; copy or make the set again")
    if path.stat().st_size != expected["bytes"]:
        got = f"{path.stat().st_size}, it is truncated or another file; copy or make the set again"
        raise ValueError(f"{name}: expected {expected['bytes']} bytes, got {got}")
    if (got := describe(path)["sha256"]) != expected["sha256"]:
        raise ValueError(f"{name}: expected sha256 {expected['sha256']}, got {got}, it is damaged; make the set again")


def load(base: Path, task: str) -> DataSet:
    """A task's made set, every file checked against its checksum.

    Raises:
        ValueError: no set, more than one, or a file that is not as it was written.
    """
    folder = find(base, task)
    manifest = check(folder)
    arrays = {name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r") for name in manifest["files"]}
    inputs, lengths = LAYOUTS[manifest["layout"]](manifest, arrays)
    splits, first = {}, 0
    for name in SPLITS:
        rows = slice(first, first + manifest["splits"][name])
        splits[name] = Split(inputs[rows], arrays["targets"][rows], None if lengths is None else lengths[rows])
        first = rows.stop
    return DataSet(task, folder.name, manifest["d_input"], manifest, splits)


def _dense(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> tuple[NDArray, None]:
    """inputs (samples, ...), all of one length; they stay on disk until they are read."""
    return arrays["inputs"], None


def _ragged(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    """tokens end to end, each sample followed by the end token when it is laid out (samples, length)."""
    return _padded(arrays["tokens"], arrays["lengths"], manifest)


def _nibbles(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    """As ragged, two tokens below 16 to a byte, the first in the lower half."""
    flat = np.empty(2 * arrays["tokens"].size, np.uint8)
    np.bitwise_and(arrays["tokens"], 15, out=flat[0::2])
    np.right_shift(arrays["tokens"], 4, out=flat[1::2])
    return _padded(flat, arrays["lengths"], manifest)


def _pairs(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    """Documents as ragged, and pairs of their numbers: (samples, 2, length)."""
    documents, lengths = _ragged(manifest, arrays)
    return documents[arrays["pairs"]], lengths[arrays["pairs"]]


LAYOUTS = {"dense": _dense, "ragged": _ragged, "nibbles": _nibbles, "pairs": _pairs}


def _padded(flat: NDArray, lengths: NDArray, manifest: Mapping[str, Any]) -> tuple[NDArray, NDArray]:
    """Rows of the manifest's length: tokens, the end token, padding; and the lengths with the end token."""
    ends, L = lengths.astype(np.int64), manifest["length"]
    rows = np.full((len(lengths), L), manifest["pad"], flat.dtype)
    k = np.arange(L)
    for first in range(0, len(lengths), 4096):  # a mask of all rows at once would be as large as the rows
        part = ends[first : first + 4096]
        begin = int(ends[:first].sum())
        rows[first : first + 4096][k < part[:, None]] = flat[begin : begin + int(part.sum())]
    rows[np.arange(len(lengths)), ends] = manifest["end"]
    return rows, (ends + 1).astype(np.int32)


def as_nibbles(tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tokens below 16, two to a byte; an odd one out is followed by 0.

    >>> as_nibbles(np.array([1, 2, 3], np.uint8)).tolist()
    [33, 3]
    """
    even = np.append(tokens, np.zeros(tokens.size % 2, np.uint8))
    return even[0::2] | even[1::2] << np.uint8(4)
