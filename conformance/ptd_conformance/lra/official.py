"""The released files of the Long Range Arena's own tasks, for users who have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import listops
from .reviews import SPECIALS, encode, vocabulary

LISTOPS = "lra_release/listops-1000"
RETRIEVAL = "lra_release/lra_release/tsv_data"
PATHFINDER = {"pathfinder": "lra_release/lra_release/pathfinder32", "pathx": "lra_release/lra_release/pathfinder128"}
HARD = "curv_contour_length_14"


class Documents(NamedTuple):
    """Documents as tokens end to end, and pairs of their numbers with labels, split by split."""

    tokens: NDArray[np.uint8]
    lengths: NDArray[np.uint16]
    pairs: NDArray[np.uint32]
    labels: NDArray[np.uint8]
    sizes: dict[str, int]
    d_input: int


def read_listops(base: Path) -> tuple[listops.Trees, dict[str, int]]:
    """The released ListOps expressions: basic_train.tsv, basic_val.tsv and basic_test.tsv.

    Raises:
        ValueError: a file is missing, cut or of another kind; it is named.
    """
    values: list[int] = []
    tokens, sizes = [], {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        path = _existing(base / LISTOPS / f"basic_{name}.tsv")
        before = len(values)
        for number, line in _lines(path, header=True):
            source, tab, target = line.partition("\t")
            if not tab or not target.strip().isdigit():
                raise ValueError(f"{path.name} line {number}: expected Source, tab, Target, got {line[:40]!r}")
            tokens.append(listops.parse(source))
            values.append(int(target))
        sizes[split] = len(values) - before
    lengths = np.array([len(tree) for tree in tokens], np.uint16)
    return listops.Trees(np.concatenate(tokens), lengths, np.array(values, np.uint8)), sizes


def read_retrieval(base: Path, longest: int) -> Documents:
    """The released document pairs: label, two ids and two texts to a line, in new_aan_pairs.{train,eval,test}.tsv.

    Raises:
        ValueError: a file is missing, cut or of another kind; it is named.
    """
    numbers: dict[str, int] = {}
    pairs: list[list[int]] = []
    labels, sizes = [], {}
    trained = 0
    for split, name in (("train", "train"), ("validation", "eval"), ("test", "test")):
        path = _existing(base / RETRIEVAL / f"new_aan_pairs.{name}.tsv")
        before = len(pairs)
        for number, line in _lines(path, header=False):
            fields = line.split("\t")
            if len(fields) != 5 or fields[0] not in ("0", "1", "0.0", "1.0"):
                raise ValueError(f"{path.name} line {number}: expected label, two ids, two texts, got {line[:40]!r}")
            pairs.append([numbers.setdefault(text[:longest], len(numbers)) for text in fields[3:]])
            labels.append(int(float(fields[0])))
        sizes[split] = len(pairs) - before
        trained = trained or len(numbers)
    texts = list(numbers)
    characters = vocabulary(texts[:trained])
    tokens, lengths = encode(texts, characters, longest)
    found = np.array(pairs, np.uint32), np.array(labels, np.uint8)
    return Documents(tokens, lengths, *found, sizes, len(characters) + SPECIALS)


def read_pathfinder(base: Path, task: str, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The released hard images of a task as (samples, side^2), and labels, in the order of the metadata.

    Raises:
        ValueError: a file is missing or of another size; it is named.
    """
    from PIL import Image

    folder = base / PATHFINDER[task] / HARD
    images, labels = [], []
    for path in sorted((folder / "metadata").glob("*.npy"), key=lambda path: int(path.stem)):
        for _, line in _lines(path, header=False):
            place, name, _, label = line.split()[:4]
            file = _existing(folder / place / name)
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("L"))
            if pixels.shape != (side, side):
                raise ValueError(
                    f"{file.name}: expected {side} x {side} pixels, got {pixels.shape}; another task's image"
                )
            images.append(pixels.ravel())
            labels.append(int(label))
    if not images:
        raise ValueError(f"{task}: expected metadata/*.npy in {folder}, got none; unpack the release there")
    return np.stack(images), np.array(labels, np.uint8)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(
            f"{path.name}: expected the released file in {path.parent}, got none; unpack the release there"
        )
    return path


def _lines(path: Path, header: bool) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; a last line without one is a cut file."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                raise ValueError(f"{path.name} line {number}: expected an end of line, got none; the file is truncated")
            if number > 1 or not header:
                yield number, line.removesuffix("\n")
