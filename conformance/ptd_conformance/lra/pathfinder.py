"""The Pathfinder tasks (Linsley et al. 2018; Kim et al. 2020): do the two disks sit on one dashed snake?

Two long snakes grow dash by dash without touching, starting over until both are whole; shorter ones are strewn between.
Everything that can be drawn is in pathfinder_tables; what remains is compiled loops over them. An image is a function
of style, seed and its index alone.
"""

# numba finds the types of what it compiles.
# mypy: allow-untyped-defs
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from . import randomness
from .pathfinder_tables import FREE, SEEDS, Style, Tables, tables

#: Draws from the whole image before the free pixels are listed: the same distribution, most often much sooner.
_GUESSES = 64


class Generator:
    """Images of one style under one seed.

    >>> from ptd_conformance.lra.pathfinder_tables import STYLES
    >>> images, labels, _ = Generator(STYLES["pathfinder"], seed=0).images(0, 2)
    >>> images.shape, labels.shape, int(images.max())
    ((2, 1024), (2,), 255)
    """

    def __init__(self, style: Style, seed: int):
        self.style, self.seed = style, seed
        self._tables: tuple[Tables, Tables] = (tables(style, style.margins[0]), tables(style, style.margins[1]))

    def images(self, first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
        """Images first ... first + count - 1 as (count, side^2) uint8, labels, and (count, 2) what they took.

        The last are the number of restarts of the long snakes and of distractors placed.
        """
        style = self.style
        pixels = np.empty((count, style.side, style.side), np.uint8)
        labels, took = np.empty(count, np.uint8), np.empty((count, 2), np.int64)
        counts = np.array([style.dashes, style.distractor_dashes, style.distractors, style.border], np.int64)
        levels = (style.contrast, style.distractor_contrast)
        _images(self._tables, counts, levels, self.seed, first, pixels, labels, took)
        return pixels.reshape(count, style.side**2), labels, took

    def parallel(self, first: int, count: int, workers: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The images and labels of images, made by several threads."""
        cuts = np.linspace(first, first + count, 4 * workers + 1).astype(int)
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(lambda a, b: self.images(a, b - a), cuts[:-1], cuts[1:]))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@njit(cache=True, nogil=True)
def _images(both, counts, levels, seed, first, pixels, labels, took):
    side = pixels.shape[1]
    state = np.zeros(1, np.uint64)
    image, mask = np.empty((side, side), np.float32), np.empty((side, side), np.float32)
    image_before, mask_before = np.empty_like(image), np.empty_like(mask)
    snakes, distractor, tails = np.empty((2, 5), np.int64), np.empty(5, np.int64), np.empty((2, 2), np.int64)
    for k in range(pixels.shape[0]):
        randomness.start(state, seed, first + k)
        label = randomness.below(state, 2)
        t = both[randomness.below(state, 2)]
        took[k, 0], took[k, 1] = 0, 0
        while not _long_snakes(state, t, counts, levels[0], image, mask, snakes, tails):
            took[k, 0] += 1
        for _ in range(counts[2]):
            for _ in range(5):
                image_before[:], mask_before[:] = image, mask
                if _distractor(state, t, counts[1], levels[1], image, mask, distractor):
                    took[k, 1] += 1
                    break
                image[:], mask[:] = image_before, mask_before
        i = randomness.below(state, 2)
        _paste(image, t.disk, tails[i, 0], tails[i, 1], 1.0)
        j = i if label == 1 else 1 - i
        _paste(image, t.disk, snakes[j, 3], snakes[j, 4], 1.0)
        top = image.max()
        for y in range(side):
            for x in range(side):
                pixels[k, y, x] = np.uint8(np.float32(255.0) * image[y, x] / top)
        labels[k] = label


# A snake is (pivot y, x, direction index, y, x of its last dash's origin): the tail of the first, else the head. The
# mask of its last dash is held back from the common mask until the next one is placed, which starts close to it.


@njit(cache=True, nogil=True)
def _long_snakes(state, t, counts, contrast, image, mask, snakes, tails):
    """Try to draw both long snakes into an empty image."""
    side, border = mask.shape[0], counts[3]
    image[:], mask[:] = 0.0, 1.0
    mask[border : side - border, border : side - border] = 0.0
    if not _first_tail(state, t, side, snakes[0]) or not _second_tail(state, t, side, snakes[0], snakes[1]):
        return False
    for i in range(2):
        tails[i, 0], tails[i, 1] = snakes[i, 3], snakes[i, 4]
        _paste(image, t.lines[snakes[i, 2]], snakes[i, 3], snakes[i, 4], contrast)
    for _ in range(counts[0] - 1):
        for i in range(2):
            if not _extend(state, t, contrast, image, mask, snakes[i]):
                return False
    # As in the original, the first snake's last dash stays unprotected.
    _paste(mask, t.masks[snakes[1, 2]], snakes[1, 3], snakes[1, 4], 1.0)
    return True


@njit(cache=True, nogil=True)
def _first_tail(state, t, side, snake):
    for _ in range(3):
        a = randomness.below(state, SEEDS)
        if t.starts[a] == t.starts[a + 1]:
            return False
        place = t.starts[a] + randomness.below(state, t.starts[a + 1] - t.starts[a])
        if _begin(t, side, a, t.open[place, 0], t.open[place, 1], snake):
            return True
    return False


@njit(cache=True, nogil=True)
def _second_tail(state, t, side, first, snake):
    for _ in range(3):
        a, f = randomness.below(state, SEEDS), randomness.below(state, 360)
        if _begin(t, side, a, first[3] + t.around[f, 0], first[4] + t.around[f, 1], snake):
            return True
    return False


@njit(cache=True, nogil=True)
def _begin(t, side, a, y, x, snake):
    """Begin a snake at tail (y, x) in direction a, unless head or pivot are outside the image."""
    head_y, head_x = y + t.heads[a, 0], x + t.heads[a, 1]
    pivot_y, pivot_x = y + t.pivots[a, 0], x + t.pivots[a, 1]
    if min(head_y, head_x, pivot_y, pivot_x) < 0 or max(head_y, head_x, pivot_y, pivot_x) >= side:
        return False
    snake[0], snake[1], snake[2], snake[3], snake[4] = pivot_y, pivot_x, a, y, x
    return True


@njit(cache=True, nogil=True)
def _extend(state, t, contrast, image, mask, snake):
    """Try to add a dash to a snake."""
    side, n, last = mask.shape[0], t.candidates.shape[0], snake[2]
    y0, x0 = snake[0] + t.advance[last, 0], snake[1] + t.advance[last, 1]
    chance, total = np.zeros(n), 0.0
    for j in range(n):
        y, x = y0 + t.candidates[j, 0], x0 + t.candidates[j, 1]
        if 0 <= y < side and 0 <= x < side and t.weights[last, j] > 0:
            # Below 0 where masks overshoot 1; the sum may be, too.
            chance[j] = (1.0 - _highest(mask, t.near, y, x)) * t.weights[last, j]
            total += chance[j]
    if total < 1e-4:
        return False
    for _ in range(3):
        j, left = 0, randomness.uniform(state) * total - chance[0]
        while left >= 0 and j < n - 1:
            j += 1
            left -= chance[j]
        y, x, d = y0 + t.candidates[j, 0], x0 + t.candidates[j, 1], SEEDS + j
        if chance[j] > 0 and _fits(mask, t.masks[d], y, x):
            _paste(image, t.lines[d], y, x, contrast)
            _paste(mask, t.masks[last], snake[3], snake[4], 1.0)
            snake[0], snake[1], snake[2], snake[3], snake[4] = y0, x0, d, y, x
            return True
    return False


@njit(cache=True, nogil=True)
def _distractor(state, t, dashes, contrast, image, mask, snake):
    """Try to draw a short snake between what is there; on failure image and mask are left half drawn."""
    if np.sum(mask <= FREE) < 0.01 * mask.size or not _free_tail(state, t, mask, snake):
        return False
    _paste(image, t.lines[snake[2]], snake[3], snake[4], contrast)
    for _ in range(dashes - 1):
        if not _extend(state, t, contrast, image, mask, snake):
            return False
    _paste(mask, t.masks[snake[2]], snake[3], snake[4], 1.0)
    return True


@njit(cache=True, nogil=True)
def _free_tail(state, t, mask, snake):
    side = mask.shape[0]
    for _ in range(3):
        a = randomness.below(state, SEEDS)
        place = _free_pixel(state, t, mask, a)
        if place < 0:
            return False
        if _begin(t, side, a, place // side, place % side, snake):
            return True
    return False


@njit(cache=True, nogil=True)
def _free_pixel(state, t, mask, a):
    """A pixel, uniform over those from which a first dash in direction a touches nothing; -1 if there is none."""
    if t.reach[a] == t.reach[a + 1]:
        return -1
    side = mask.shape[0]
    for _ in range(_GUESSES):
        place = randomness.below(state, side * side)
        if _is_free(t, mask, a, place // side, place % side):
            return place
    found, count = np.empty(side * side, np.int64), 0
    for y in range(side):
        for x in range(side):
            if _is_free(t, mask, a, y, x):
                found[count] = y * side + x
                count += 1
    return found[randomness.below(state, count)] if count else -1


@njit(cache=True, nogil=True)
def _is_free(t, mask, a, y0, x0):
    side = mask.shape[0]
    for k in range(t.reach[a], t.reach[a + 1]):
        y, x = y0 + t.touched[k, 0], x0 + t.touched[k, 1]
        if 0 <= y < side and 0 <= x < side and mask[y, x] > FREE:
            return False
    return True


@njit(cache=True, nogil=True)
def _highest(mask, near, y0, x0):
    """The mask's largest value within the margin of a pixel."""
    side, top = mask.shape[0], np.float32(0.0)
    for k in range(near.shape[0]):
        y, x = y0 + near[k, 0], x0 + near[k, 1]
        if 0 <= y < side and 0 <= x < side:
            top = max(top, mask[y, x])
    return top


@njit(cache=True, nogil=True)
def _fits(mask, patch, y0, x0):
    """Whether a dash's mask, pasted around (y0, x0), overlaps none that is there."""
    side, half = mask.shape[0], patch.shape[0] // 2
    for y in range(max(0, y0 - half), min(side, y0 + half + 1)):
        for x in range(max(0, x0 - half), min(side, x0 + half + 1)):
            if mask[y, x] + patch[y - y0 + half, x - x0 + half] >= 1.8:
                return False
    return True


@njit(cache=True, nogil=True)
def _paste(image, patch, y0, x0, contrast):
    """image = max(image, contrast patch) around (y0, x0), cut at the edges."""
    side, half = image.shape[0], patch.shape[0] // 2
    for y in range(max(0, y0 - half), min(side, y0 + half + 1)):
        for x in range(max(0, x0 - half), min(side, x0 + half + 1)):
            value = np.float32(contrast) * patch[y - y0 + half, x - x0 + half]
            if value > image[y, x]:
                image[y, x] = value
