"""How each task's data set is made, from a generator or from its sources."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptd import checks

from . import reviews, store

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Order:
    """How a set is made.

    Attributes:
        base: the data folder that the set is written to.
        source: the folder with archives or released files; base by default.
        seed: of generated samples and of random splits.
        samples: training, validation and test samples together; None for the task's full number.
        workers: threads of a generator.
        official: read the released files of a generated task instead.
        report: called with (samples made, samples in all).
        say: called with a line where a set is there already, or is made again.

    Raises:
        ValueError: a number is out of range.
    """

    base: Path
    source: Path
    seed: int = 0
    samples: int | None = None
    workers: int = 2
    official: bool = False
    report: Report = lambda done, total: None
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        if self.samples is not None:
            checks.positive_integer("samples", self.samples)
        checks.positive_integer("workers", self.workers)
        checks.number("seed", self.seed, 0, 1 << 63, "an integer in 0..2^63 - 1")

    def there(self, task: str, made_from: Mapping[str, Any]) -> Path | None:
        """See store.there."""
        return store.there(self.base, task, made_from, self.say)


# --- generated


def listops(order: Order) -> Path:
    """ListOps: 100,000 trees, or the released files."""
    from . import listops, official

    made_from: dict[str, Any]
    if order.official:
        trees, sizes = official.read_listops(order.source)
        made_from = {"released": official.LISTOPS, "content": _content(trees.tokens, trees.values)}
    else:
        count = order.samples or 100_000
        made_from, sizes = {"generator": "listops 1", "seed": order.seed, "samples": count}, _sizes(count, 0.96, 0.02)
        if found := order.there("listops", made_from):
            return found
        trees = listops.generate(count, order.seed, workers=order.workers, report=order.report)
    facts = {
        "layout": "nibbles",
        "length": 2048,
        "pad": listops.PAD,
        "end": listops.EOS,
        "d_input": len(listops.TOKENS),
    }
    tokens = store.as_nibbles(trees.tokens)
    arrays: dict[str, NDArray] = {"tokens": tokens, "lengths": trees.lengths, "targets": trees.values}
    return store.write(order.base, "listops", made_from, arrays, sizes, **facts, full=_is_full(sizes, "listops"))


def pathfinder(order: Order, task: str) -> Path:
    """Pathfinder or Path-X: 200,000 images, or the released files."""
    from . import official
    from .pathfinder_tables import STYLES

    side = STYLES[task].side
    if order.official:
        pixels, labels = official.read_pathfinder(order.source, task, side)
        shuffled = np.random.default_rng(order.seed).permutation(len(labels))
        sizes, made_from = _sizes(len(labels), 0.8, 0.1), {"released": task, "content": _content(pixels, labels)}
        arrays = {"inputs": pixels[shuffled], "targets": labels[shuffled]}
        return store.write(order.base, task, made_from, arrays, sizes, **_DENSE, full=_is_full(sizes, task))
    return _draw(order, task, side)


def _draw(order: Order, task: str, side: int) -> Path:
    """Draw images block by block; an interrupted run goes on with the blocks that are missing."""
    from .pathfinder import Generator
    from .pathfinder_tables import STYLES

    count = order.samples or 200_000
    made_from, sizes = {"generator": f"{task} 2", "seed": order.seed, "samples": count}, _sizes(count, 0.8, 0.1)
    if found := order.there(task, made_from):
        return found
    generator, draft = Generator(STYLES[task], order.seed), store.Draft(order.base, task, made_from)
    inputs = draft.array("inputs", (count, side * side), np.uint8)
    targets = draft.array("targets", (count,), np.uint8)
    done, block = draft.finished(), max(1, BLOCK // side**2)
    for number, first in enumerate(range(0, count, block)):
        rows = slice(first, min(first + block, count))
        if number not in done:
            inputs[rows], targets[rows] = generator.parallel(first, rows.stop - first, order.workers)
            draft.mark(number, inputs, targets)
        order.report(rows.stop, count)
    return draft.finish(sizes, **_DENSE, full=_is_full(sizes, task))


# --- read


def text(order: Order) -> Path:
    """Text: the reviews; a tenth of the training half is held out to select on."""
    made_from = {"content": reviews.CONTENT, "seed": order.seed, "samples": order.samples}
    if there := order.there("text", made_from):
        return there
    texts, labels, train = _columns(reviews.read(order.source))
    characters = reviews.vocabulary(text for text, row in zip(texts, train, strict=True) if row)
    rng = np.random.default_rng(order.seed)
    apart = np.zeros(len(texts), bool)
    apart[train] = reviews.held_out(labels[train], int(train.sum()) // 10, rng)
    rows = _thinned([np.flatnonzero(part) for part in (train & ~apart, apart, ~train)], order.samples)
    chosen = np.concatenate(rows)
    tokens, lengths = reviews.encode([texts[row] for row in chosen], characters, 4095)
    arrays = {"tokens": tokens, "lengths": lengths, "targets": labels[chosen]}
    sizes = dict(zip(store.SPLITS, map(len, rows), strict=True))
    facts = _RAGGED | {"length": 4096, "d_input": len(characters) + reviews.SPECIALS, "characters": characters}
    return store.write(order.base, "text", made_from, arrays, sizes, **facts, full=order.samples is None)


def same_film(order: Order) -> Path:
    """Pairs of reviews; those of a tenth of the training films are for validation, so that no film is in two splits."""
    made_from = {"content": reviews.CONTENT, "pairs": "same film 1", "seed": order.seed, "samples": order.samples}
    counts = _sizes(order.samples or 60_000, 0.8, 0.05, least=2)
    if there := order.there("same-film", made_from):
        return there
    found = reviews.read(order.source)
    texts, labels, train = _columns(found)
    films = np.array([review.film for review in found])
    rng = np.random.default_rng(order.seed)
    characters = reviews.vocabulary(text for text, row in zip(texts, train, strict=True) if row)
    names = np.unique(films[train])
    apart = np.isin(films, rng.choice(names, size=len(names) // 10, replace=False))
    parts = [np.flatnonzero(part) for part in (train & ~apart, train & apart, ~train & ~np.isin(films, names))]
    pairs, same = [], []
    for rows, count in zip(parts, counts.values(), strict=True):
        drawn, is_same = reviews.same_film_pairs(films[rows], labels[rows].astype(np.int64), count // 2 * 2, rng)
        pairs.append(rows[drawn])
        same.append(is_same)
    used, numbers = np.unique(np.concatenate(pairs), return_inverse=True)
    tokens, lengths = reviews.encode([texts[row] for row in used], characters, 3999)
    arrays: dict[str, NDArray] = {"tokens": tokens, "lengths": lengths, "targets": np.concatenate(same)}
    arrays["pairs"] = numbers.reshape(-1, 2).astype(np.uint32)
    sizes = dict(zip(store.SPLITS, map(len, same), strict=True))
    facts = _RAGGED | {"layout": "pairs", "length": 4000, "d_input": len(characters) + reviews.SPECIALS}
    return store.write(order.base, "same-film", made_from, arrays, sizes, **facts, full=order.samples is None)


def retrieval(order: Order) -> Path:
    """Retrieval: the released pairs."""
    from . import official

    found = official.read_retrieval(order.source, 3999)
    made_from = {"released": official.RETRIEVAL, "content": _content(found.tokens, found.pairs, found.labels)}
    arrays: dict[str, NDArray] = {"tokens": found.tokens, "lengths": found.lengths}
    arrays |= {"pairs": found.pairs, "targets": found.labels}
    facts = _RAGGED | {"layout": "pairs", "length": 4000, "d_input": found.d_input}
    full = _is_full(found.sizes, "retrieval")
    return store.write(order.base, "retrieval", made_from, arrays, found.sizes, **facts, full=full)


def images(order: Order, task: str) -> Path:
    """CIFAR-10, grey or in colour, or MNIST, in order or permuted."""
    from . import images

    is_mnist = task in ("mnist", "pmnist")
    content = images.MNIST_CONTENT if is_mnist else images.CIFAR_CONTENT
    made_from = {"content": content, "seed": order.seed, "samples": order.samples}
    if there := order.there(task, made_from):
        return there
    found = images.mnist(order.source) if is_mnist else images.cifar10(order.source)
    rng = np.random.default_rng(order.seed)
    train, apart = rng.permutation(found.train), found.train // (12 if is_mnist else 10)
    parts = [train[:-apart], train[-apart:], np.arange(found.train, len(found.labels))]
    rows = _thinned(parts, order.samples)
    chosen = np.concatenate(rows)
    pixels = images.grey(found.pixels[chosen]) if task == "image" else found.pixels[chosen]
    pixels = pixels.reshape(len(chosen), pixels.shape[1] * pixels.shape[2], *pixels.shape[3:])
    if task == "pmnist":
        pixels = pixels[:, np.random.default_rng([order.seed, 1]).permutation(pixels.shape[1])]
    arrays = {"inputs": pixels, "targets": found.labels[chosen]}
    sizes = dict(zip(store.SPLITS, map(len, rows), strict=True))
    facts = _DENSE | {"d_input": 3 if task == "scifar" else 1, "full": order.samples is None}
    return store.write(order.base, task, made_from, arrays, sizes, **facts)


# --- parts

#: Pixels that are drawn between two notes of how far a generator is.
BLOCK = 1 << 21

_DENSE: dict[str, Any] = {"layout": "dense", "d_input": 1}
_RAGGED: dict[str, Any] = {"layout": "ragged", "pad": reviews.PAD, "end": reviews.END}

#: Samples of each split of the tasks that are generated or released as a whole.
_FULL = {
    "listops": (96_000, 2_000, 2_000),
    "pathfinder": (160_000, 20_000, 20_000),
    "pathx": (160_000, 20_000, 20_000),
    "retrieval": (147_086, 18_090, 17_437),
}


def _is_full(sizes: dict[str, int], task: str) -> bool:
    return tuple(sizes.values()) == _FULL[task]


def _sizes(count: int, train: float, validation: float, least: int = 1) -> dict[str, int]:
    sizes = [round(count * train), round(count * validation)]
    found = dict(zip(store.SPLITS, [*sizes, count - sum(sizes)], strict=True))
    if min(found.values()) < least:
        got = f"{count}: " + ", ".join(f"{size} {name}" for name, size in found.items())
        raise checks.fail("samples", f"at least {least} in every split", got, "pass more")
    return found


def _thinned(parts: list[NDArray], samples: int | None) -> list[NDArray]:
    """Samples of each part, in proportion, evenly spaced: sources may be sorted by class."""
    if samples is None:
        return parts
    total = sum(map(len, parts))
    counts = [max(1, min(len(part), math.ceil(len(part) * samples / total))) for part in parts]
    return [part[np.arange(count) * len(part) // count] for part, count in zip(parts, counts, strict=True)]


def _columns(found: list[reviews.Review]) -> tuple[list[str], NDArray[np.uint8], NDArray[np.bool_]]:
    """Texts, labels, and whether each review is of the training half."""
    train = np.array([review.split == "train" for review in found])
    return [review.text for review in found], np.array([review.label for review in found], np.uint8), train


def _content(*arrays: NDArray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
