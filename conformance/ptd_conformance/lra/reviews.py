"""The Large Movie Review Dataset v1.0 (Maas et al. 2011): the Text task, and a stand-in for Retrieval.

It is read from the official archive, from the folder that it unpacks to, or from a compact copy of the same content.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Of all reviews in the order of their names, as digest makes it.
CONTENT = "3c57279a2c9e398414f5cad88ad6300fcbf778dbfc2411b32f2ac9d6ae5b4d4b"
SOURCES = ("aclImdb_v1.tar.gz", "aclImdb/", "imdb/imdb.jsonl.xz")
RAREST = 15
PAD, UNKNOWN, END, SPECIALS = 0, 1, 2, 3

_NAME = re.compile(r"(?:.*/)?(train|test)/(neg|pos)/(\d+)_(\d+)\.txt")
_LINKS = re.compile(r"(?:.*/)?(train|test)/urls_(neg|pos)\.txt")
_FILM = re.compile(r"tt(\d+)")


class Review(NamedTuple):
    """One review; ids count within its split and label."""

    split: str
    label: int
    id: int
    film: int
    text: str


def read(base: Path) -> list[Review]:
    """All 50,000 reviews, in the order of split, label and id.

    Raises:
        ValueError: no source is there, or it is not the official content.
    """
    for name, reader in zip(SOURCES, (_archive, _folder, _lines), strict=True):
        if (path := base / name).exists():
            try:
                reviews = sorted(reader(path))
            except (tarfile.TarError, lzma.LZMAError, EOFError, UnicodeError, ValueError, KeyError) as error:
                raise ValueError(f"{name}: expected the reviews, got {error}; it is truncated or foreign") from error
            if (got := digest(reviews)) != CONTENT:
                raise ValueError(
                    f"{name}: expected the 50,000 official reviews, got {len(reviews)} (digest {got[:12]})"
                )
            return reviews
    raise ValueError(f"text: expected one of {', '.join(SOURCES)} in {base}, got none; ptd data fetch text")


def digest(reviews: Sequence[Review]) -> str:
    """sha256 over every field of the reviews in their order."""
    found = hashlib.sha256()
    for review in reviews:
        found.update(json.dumps(list(review)).encode())
    return found.hexdigest()


def _archive(path: Path) -> Iterator[Review]:
    with tarfile.open(path, "r:gz") as archive:
        wanted = ((member.name, archive.extractfile(member)) for member in archive if _is_wanted(member))
        yield from _files((name, file.read()) for name, file in wanted if file)


def _is_wanted(member: tarfile.TarInfo) -> bool:
    return member.isfile() and bool(_NAME.fullmatch(member.name) or _LINKS.fullmatch(member.name))


def _folder(path: Path) -> Iterator[Review]:
    names = sorted(found.relative_to(path).as_posix() for found in path.glob("t*/**/*.txt"))
    wanted = (name for name in names if _NAME.fullmatch(name) or _LINKS.fullmatch(name))
    yield from _files((name, (path / name).read_bytes()) for name in wanted)


def _files(files: Iterable[tuple[str, bytes]]) -> Iterator[Review]:
    texts, films = [], {}
    for name, data in files:
        if found := _LINKS.fullmatch(name):
            films[found.groups()] = [int(film) for film in _FILM.findall(data.decode())]
        elif found := _NAME.fullmatch(name):
            texts.append((*found.groups()[:3], data.decode()))
    for split, side, number, text in texts:
        yield Review(split, int(side == "pos"), int(number), films[split, side][int(number)], text)


def _lines(path: Path) -> Iterator[Review]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield Review(row["split"], row["label"], row["id"], int(str(row["movie"]).removeprefix("tt")), row["text"])


def vocabulary(texts: Iterable[str], rarest: int = RAREST) -> list[str]:
    """Characters seen at least rarest times, in the order of their code points."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return sorted(character for character, count in counts.items() if count >= rarest)


def encode(
    texts: Sequence[str], characters: Sequence[str], longest: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Token numbers of texts end to end, each cut to longest, and their lengths.

    >>> [part.tolist() for part in encode(["ab", "c"], "ac", 9)]
    [[3, 1, 4], [2, 1]]
    """
    if len(characters) + SPECIALS > 256:
        raise ValueError(f"characters: expected at most {256 - SPECIALS}, got {len(characters)}; raise rarest")
    table = np.full(0x110000, UNKNOWN, np.uint8)
    table[[ord(character) for character in characters]] = np.arange(len(characters)) + SPECIALS
    cut = [text[:longest] for text in texts]
    points = np.frombuffer("".join(cut).encode("utf-32-le"), np.uint32)
    return table[points], np.array([len(text) for text in cut], np.uint16)


def held_out(labels: NDArray, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which samples to set apart: count of them, the same number of each label."""
    apart = np.zeros(len(labels), bool)
    kinds = np.unique(labels)
    for kind in kinds:
        apart[rng.permutation(np.flatnonzero(labels == kind))[: count // len(kinds)]] = True
    return apart


def same_film_pairs(
    films: NDArray[np.int64], labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Pairs (count, 2) of reviews, half of one film and half of two, and which; sentiments mixed alike in both halves.

    Each pair of one film is followed by one of two films with the same two labels.
    """
    order = np.argsort(films, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(films[order]) != 0])
    groups = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    weights = np.array([len(group) * (len(group) - 1) for group in groups], np.float64)
    of_label = [np.flatnonzero(labels == label) for label in (0, 1)]
    pairs = np.empty((count, 2), np.int64)
    for k, choice in enumerate(rng.choice(len(groups), size=count // 2, p=weights / weights.sum())):
        pairs[2 * k] = rng.choice(groups[choice], size=2, replace=False)
        while True:
            pairs[2 * k + 1] = [rng.choice(of_label[label]) for label in labels[pairs[2 * k]]]
            if films[pairs[2 * k + 1, 0]] != films[pairs[2 * k + 1, 1]]:
                break
    return pairs, np.tile(np.array([1, 0], np.uint8), count // 2)
