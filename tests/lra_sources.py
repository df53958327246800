"""Small made-up sources in the official formats, small recipes, and a clock that stops, for the tests of the Arena."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import lzma
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ptd_conformance.lra import clock, images, reviews, store, tasks
from ptd_conformance.lra.recipe import Recipe, recipe

PER_BATCH = 40


def cifar_pixels() -> images.Images:
    """Noise with a label in every image's first pixel, so that there is something to learn."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 6 * PER_BATCH).astype(np.uint8)
    pixels = rng.integers(0, 40, (len(labels), 32, 32, 3), np.uint8)
    pixels += 21 * labels[:, None, None, None]
    return images.Images(pixels, labels, 5 * PER_BATCH)


def rows(pixels: np.ndarray) -> np.ndarray:
    """Red, green and blue planes, as the official batches have them."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


def write_binary(base: Path, found: images.Images) -> None:
    folder = base / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    together = np.concatenate([found.labels[:, None], rows(found.pixels)], axis=1)
    for i, name in enumerate(images.BATCHES):
        (folder / f"{name}.bin").write_bytes(together[i * PER_BATCH : (i + 1) * PER_BATCH].tobytes())


def write_pickled(base: Path, found: images.Images) -> None:
    base.mkdir(parents=True, exist_ok=True)
    with tarfile.open(base / "cifar-10-python.tar.gz", "w:gz", compresslevel=1) as archive:
        for i, name in enumerate(images.BATCHES):
            part = slice(i * PER_BATCH, (i + 1) * PER_BATCH)
            batch = {b"data": rows(found.pixels[part]), b"labels": found.labels[part].tolist()}
            add(archive, f"cifar-10-batches-py/{name}", pickle.dumps(batch, protocol=2))


def write_sheets(base: Path, found: images.Images) -> None:
    folder = base / "cifar10"
    folder.mkdir(parents=True)
    for i, name in enumerate(images.BATCHES):
        tiles = found.pixels[i * PER_BATCH : (i + 1) * PER_BATCH].reshape(4, 10, 32, 32, 3)
        sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(128, 320, 3)
        Image.fromarray(sheet).save(folder / f"{name}.webp", lossless=True, quality=0, method=0)
    labels = {name: found.labels[i * PER_BATCH : (i + 1) * PER_BATCH].tolist() for i, name in enumerate(images.BATCHES)}
    (folder / "labels.json").write_text(json.dumps(labels))


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def digits() -> images.Images:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 140).astype(np.uint8)
    pixels = rng.integers(0, 30, (140, 28, 28)) + 22 * labels[:, None, None]
    return images.Images(pixels.astype(np.uint8), labels, 120)


def write_idx(base: Path, found: images.Images) -> None:
    folder = base / "mnist"
    folder.mkdir(parents=True)
    for name, part in (("train", slice(0, found.train)), ("t10k", slice(found.train, None))):
        for kind, array in (("images-idx3", found.pixels[part]), ("labels-idx1", found.labels[part])):
            head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes(), 1))


def write_arrays(base: Path, found: images.Images) -> None:
    folder = base / "mnist"
    folder.mkdir(parents=True)
    for name, array in (("mnist_u8", found.pixels), ("mnist_labels_u8", found.labels)):
        file = io.BytesIO()
        np.save(file, array)
        (folder / f"{name}.npy.xz").write_bytes(lzma.compress(file.getvalue(), preset=0))


def made_up_reviews(each: int = 60) -> list[reviews.Review]:
    """Reviews whose letters tell the label, of films of four reviews each, none in both splits."""
    rng, found = np.random.default_rng(2), []
    for split in ("train", "test"):
        for label in (0, 1):
            for i in range(each):
                words = rng.choice(list("abcdef " if label else "uvwxyz "), size=int(rng.integers(40, 90)))
                film = (i // 2) + (0 if split == "train" else 10_000)
                found.append(reviews.Review(split, label, i, film, "".join(words) + " <br />é"))
    return sorted(found)


def write_lines(base: Path, found: list[reviews.Review]) -> None:
    (base / "imdb").mkdir(parents=True)
    lines = [
        json.dumps({"split": r.split, "label": r.label, "id": r.id, "rating": 1, "movie": r.film, "text": r.text})
        for r in found
    ]
    (base / "imdb" / "imdb.jsonl.xz").write_bytes(lzma.compress("\n".join(lines).encode(), preset=0))


def review_files(found: list[reviews.Review]) -> dict[str, bytes]:
    """The official archive's files."""
    side = ("neg", "pos")
    files = {f"{r.split}/{side[r.label]}/{r.id}_7.txt": r.text.encode() for r in found}
    for split in ("train", "test"):
        for label in (0, 1):
            films = [r.film for r in sorted(found, key=lambda r: r.id) if (r.split, r.label) == (split, label)]
            links = "".join(f"http://www.imdb.com/title/tt{film:07}/usercomments\n" for film in films)
            files[f"{split}/urls_{side[label]}.txt"] = links.encode()
    return files


@pytest.fixture(scope="session")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small set of every task, made from made-up sources."""
    base = tmp_path_factory.mktemp("data")
    source = base / "source"
    pixels, numbers, texts = cifar_pixels(), digits(), made_up_reviews()
    write_binary(source, pixels)
    write_arrays(source, numbers)
    write_lines(source, texts)
    write_pairs(source, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "CIFAR_CONTENT", images.digest(pixels))
        patch.setattr(images, "MNIST_CONTENT", images.digest(numbers))
        patch.setattr(reviews, "CONTENT", reviews.digest(texts))
        for name in tasks.TASKS:
            count = {"text": None, "same-film": 80, "retrieval": None}.get(name, 60)
            tasks.TASKS[name].make(tasks.Order(base, source, samples=count))
    return base


def write_pairs(base: Path, found: list[reviews.Review]) -> None:
    """Released Retrieval files: pairs of reviews of one split."""
    from ptd_conformance.lra import official

    folder = base / official.RETRIEVAL
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name, count in (("train", 24), ("eval", 8), ("test", 8)):
        lines = []
        for _ in range(count):
            a, b = rng.choice(len(found), 2)
            lines.append(f"{float(found[a].label == found[b].label)}\t{a}\t{b}\t{found[a].text}\t{found[b].text}\n")
        (folder / f"new_aan_pairs.{name}.tsv").write_text("".join(lines))


def tiny(task: str, name: str, **training: Any) -> Recipe:
    """A recipe of a task at a size that compiles in seconds: one narrow block, few states, short training."""
    full = recipe(task, name)
    layer = {**full.layer, "d_model": 4, "d_state": 8} | ({"blocks": 2} if full.layer["kind"] == "s5" else {})
    if not full.layer.get("conj_sym", True):
        layer |= {"d_state": 4}  # ListOps' blocks of 2
    options = {"batch": 8, "epochs": 2, "warmup_epochs": 0} | training
    return dataclasses.replace(full, layer=layer, model={**full.model, "n_layers": 1}, training=options)


class Stops(clock.Clock):
    """A clock that stops a run after so many questions whether there is time."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def has(self, needed: float) -> bool:
        self.left -= 1
        return self.left >= 0


def load(base: Path, task: str, longest: int | None = 128) -> store.DataSet:
    """A small set, its sequences cut so that a step takes milliseconds."""
    data = store.load(base, task)
    if longest is None:
        return data

    def cut(part: store.Split) -> store.Split:
        axis = 2 if tasks.TASKS[task].pair else 1
        inputs = np.asarray(part.inputs)[(slice(None),) * axis + (slice(longest),)]
        lengths = None if part.lengths is None else np.minimum(part.lengths, longest)
        return store.Split(inputs, part.targets, lengths)

    return dataclasses.replace(data, splits={name: cut(part) for name, part in data.splits.items()})
