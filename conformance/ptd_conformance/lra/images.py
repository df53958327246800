"""CIFAR-10 (Krizhevsky 2009) and MNIST (LeCun, Cortes and Burges), from the official files or lossless copies."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

#: sha256 of pixels and then labels, uint8: of CIFAR-10's (60000, 32, 32, 3), and of MNIST's (70000, 28, 28).
CIFAR_CONTENT = "795f1793d7b8f8883c578442a02455d2469d49685325e98ea0621b15f4a88d69"
MNIST_CONTENT = "c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83"


class Images(NamedTuple):
    """Images and labels, uint8, in their official order: train training images, then test images."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    train: int


def cifar10(base: Path) -> Images:
    """CIFAR-10's 50,000 training and 10,000 test images, (60000, 32, 32, 3).

    Raises:
        ValueError: no source is there, or it is not the official content.
    """
    return _first("image", base, _CIFAR, CIFAR_CONTENT)


def mnist(base: Path) -> Images:
    """MNIST's 60,000 training and 10,000 test images, (70000, 28, 28).

    Raises:
        ValueError: no source is there, or it is not the official content.
    """
    return _first("mnist", base, _MNIST, MNIST_CONTENT)


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma of ITU-R 601 in Pillow's integer arithmetic, (..., 3) to (...,).

    >>> grey(np.array([[255, 255, 255], [255, 0, 0]], np.uint8)).tolist()
    [255, 76]
    """
    wide = pixels.astype(np.uint32)
    return ((wide @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16).astype(np.uint8)


def digest(images: Images) -> str:
    """sha256 of pixels and labels."""
    return hashlib.sha256(images.pixels.tobytes() + images.labels.tobytes()).hexdigest()


def _first(task: str, base: Path, sources: dict[str, Callable[[Path], Images]], content: str) -> Images:
    """The images of the first source that is there, checked."""
    for name, reader in sources.items():
        if (path := base / name).exists():
            try:
                images = reader(path)
            except (
                OSError,
                EOFError,
                ValueError,
                KeyError,
                tarfile.TarError,
                lzma.LZMAError,
                pickle.UnpicklingError,
            ) as error:
                raise ValueError(
                    f"{name}: expected the official images, got {error!r}; it is truncated or foreign"
                ) from error
            if (got := digest(images)) != content:
                raise ValueError(
                    f"{name}: expected content sha256 {content[:12]}..., got {got[:12]}...; it is damaged or foreign"
                )
            return images
    raise ValueError(f"{task}: expected one of {', '.join(sources)} in {base}, got none; ptd data fetch {task}")


# --- CIFAR-10: three official forms and a sheet of tiles


class _Plain(pickle.Unpickler):
    """The unpickler of the official batches: NumPy arrays and plain values, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.removeprefix("numpy.").removeprefix("_"), name) in {
            ("core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("codecs", "encode"),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} in a batch")


def _planes(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 3072) rows of red, green and blue planes as (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _pickled(read: Callable[[str], bytes]) -> Images:
    batches = [_Plain(io.BytesIO(read(name)), encoding="bytes").load() for name in BATCHES]
    labels = [np.asarray(batch[b"labels"], np.uint8) for batch in batches]
    return _joined([_planes(batch[b"data"]) for batch in batches], labels)


def _binary(read: Callable[[str], bytes]) -> Images:
    batches = [np.frombuffer(read(f"{name}.bin"), np.uint8).reshape(-1, 3073) for name in BATCHES]
    return _joined([_planes(batch[:, 1:]) for batch in batches], [batch[:, 0] for batch in batches])


def _in_folder(read_all: Callable[[Callable[[str], bytes]], Images]) -> Callable[[Path], Images]:
    return lambda path: read_all(lambda name: (path / name).read_bytes())


def _in_archive(read_all: Callable[[Callable[[str], bytes]], Images]) -> Callable[[Path], Images]:
    def reader(path: Path) -> Images:
        with tarfile.open(path, "r:gz") as archive:
            files = ((member.name, archive.extractfile(member)) for member in archive if member.isfile())
            members = {Path(name).name: file.read() for name, file in files if file}
        return read_all(members.__getitem__)

    return reader


def _sheets(path: Path) -> Images:
    """A lossless sheet of 32 x 32 tiles, row by row, for every batch, and labels.json."""
    from PIL import Image

    labels = json.loads((path / "labels.json").read_text(encoding="utf-8"))
    parts = []
    for name in BATCHES:
        with Image.open(path / f"{name}.webp") as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        tiles = pixels.reshape(pixels.shape[0] // 32, 32, pixels.shape[1] // 32, 32, 3)
        parts.append(tiles.transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3))
    return _joined(parts, [np.array(labels[name], np.uint8) for name in BATCHES])


def _joined(pixels: list[NDArray[np.uint8]], labels: list[NDArray[np.uint8]]) -> Images:
    """Training batches and a last one to test on."""
    train = sum(len(batch) for batch in labels[:-1])
    return Images(np.concatenate(pixels), np.concatenate(labels), train)


_CIFAR: dict[str, Callable[[Path], Images]] = {
    "cifar-10-batches-py": _in_folder(_pickled),
    "cifar-10-python.tar.gz": _in_archive(_pickled),
    "cifar-10-batches-bin": _in_folder(_binary),
    "cifar-10-binary.tar.gz": _in_archive(_binary),
    "cifar10": _sheets,
}


# --- MNIST: the idx files, or two compressed arrays


def _idx(data: bytes) -> NDArray[np.uint8]:
    if data[:3] != b"\0\0\x08":
        raise ValueError("no idx file of bytes")
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _idx_files(path: Path) -> Images:
    def read(name: str) -> NDArray[np.uint8]:
        return _idx(gzip.decompress((path / f"{name}-ubyte.gz").read_bytes()))

    pixels = [read(f"{part}-images-idx3") for part in ("train", "t10k")]
    labels = [read(f"{part}-labels-idx1") for part in ("train", "t10k")]
    return _joined(pixels, labels)


def _arrays(path: Path) -> Images:
    def read(name: str) -> NDArray[np.uint8]:
        return np.load(io.BytesIO(lzma.decompress((path / name).read_bytes())), allow_pickle=False)

    pixels, labels = read("mnist_u8.npy.xz"), read("mnist_labels_u8.npy.xz")
    return Images(pixels, labels, len(labels) * 6 // 7)


def _either(path: Path) -> Images:
    return _arrays(path) if (path / "mnist_u8.npy.xz").exists() else _idx_files(path)


_MNIST: dict[str, Callable[[Path], Images]] = {"mnist": _either}
