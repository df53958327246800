"""The Pathfinder generator against the statistics of original images, and its independence of how it is run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, minimum_filter
from scipy.ndimage import label as components

from ptd_conformance.lra.pathfinder import Generator
from ptd_conformance.lra.pathfinder_tables import STYLES, tables

SMALL, LARGE = STYLES["pathfinder"], STYLES["pathx"]


@pytest.fixture(scope="module")
def small():
    return Generator(SMALL, seed=0).images(0, 1500)


@pytest.fixture(scope="module")
def large():
    return Generator(LARGE, seed=0).images(0, 120)


def test_pathfinder_looks_like_the_original(small):
    """600 original images: mean 22.7, deviation 52.8, share above 64 .1415, above 128 .0898, mass 91.0 +- 11.2.

    Of their 10 distractors 2.7 are placed, and the long snakes start over about 250 times.
    """
    images = small[0].astype(float)
    assert (images.mean(), images.std()) == (pytest.approx(22.7, abs=0.4), pytest.approx(52.8, abs=0.5))
    assert (images > 64).mean() == pytest.approx(0.1415, abs=0.006)
    assert (images > 128).mean() == pytest.approx(0.0898, abs=0.003)
    restarts, placed = small[2].mean(0)
    assert (restarts, placed) == (pytest.approx(250, abs=50), pytest.approx(2.7, abs=0.2))
    assert images.sum(1).std() / 255 == pytest.approx(11.2, abs=1.2)


def test_path_x_looks_like_the_release(large):
    """8 released images: mass 605.6 +- 19, share above 64 .0519, mean 9.43, deviation 36.12.

    24 original ones: 14.1 of 17 distractors placed.
    """
    images = large[0].astype(float)
    assert images.sum(1).mean() / 255 == pytest.approx(605.6, abs=3 * 19)
    assert (images > 64).mean() == pytest.approx(0.0519, abs=0.003)
    assert (images.mean(), images.std()) == (pytest.approx(9.43, abs=0.5), pytest.approx(36.12, abs=1.0))
    assert large[2][:, 1].mean() == pytest.approx(14.1, abs=1.2)


def test_labels_are_balanced(small):
    assert small[1].mean() == pytest.approx(0.5, abs=4 * 0.5 / 1500**0.5)


def disks(image: np.ndarray) -> tuple[np.ndarray, int]:
    """The two markers of a Path-X image: where a square of 4 pixels is bright throughout, as no dash can make it."""
    return components(minimum_filter(image.reshape(128, 128), 4) > 100)


def test_every_image_has_two_disks(large):
    counts = np.array([disks(image)[1] for image in large[0]])
    assert np.all(counts == 2)
    assert large[0].max(axis=1).tolist() == [255] * len(counts)


@pytest.mark.parametrize("style", [SMALL, LARGE], ids=["pathfinder", "pathx"])
def test_image_depends_on_seed_and_index_alone(style):
    generator = Generator(style, seed=5)
    whole, labels, _ = generator.images(7, 6)
    in_threads = generator.parallel(7, 6, workers=3)
    assert (np.array_equal(whole, in_threads[0]), np.array_equal(labels, in_threads[1])) == (True, True)
    assert np.array_equal(generator.images(10, 1)[0][0], whole[3])
    assert not np.array_equal(Generator(style, seed=6).images(7, 1)[0][0], whole[0])


def test_label_says_whether_a_snake_joins_the_disks():
    """Without distractors: both disks on one chain of dashes, or on one each, wherever the snakes keep apart.

    Two chains of unlike size are both snakes, grown into each other, and a piece of one.
    """
    images, labels, _ = Generator(dataclasses.replace(LARGE, distractors=0), seed=1).images(0, 60)
    agreed, told = [], 0
    for image, label in zip(images, labels, strict=True):
        places, count = disks(image)
        chains, snakes = components(binary_dilation(image.reshape(128, 128) > 40, iterations=3))
        sizes = np.bincount(chains.ravel())[1:]
        if (count, snakes) == (2, 2) and sizes.min() > sizes.max() / 2:
            first, second = (chains[places == i][0] for i in (1, 2))
            agreed.append((first == second) == bool(label))
            told += 1
    assert told >= 15
    assert np.mean(agreed) == 1


@pytest.mark.parametrize(("style", "margin", "none"), [(SMALL, 1, 299), (LARGE, 2, 0), (LARGE, 3, 0)])
def test_first_dashes_begin_in_some_directions_only(style, margin, none):
    """Where a dash could lie outside the image altogether, none does, wherever; long snakes begin in the middle."""
    t = tables(style, margin)
    assert (np.diff(t.reach) == 0).sum() == (np.diff(t.starts) == 0).sum() == none
    assert np.abs(t.open - style.side / 2).max() < style.side / 2 - 2 * style.seed_distance + style.dash + margin


def test_turns_are_bounded_by_continuity():
    t = tables(LARGE, 2)
    directions = np.arctan2(t.candidates[:, 0], t.candidates[:, 1])
    turn = np.abs((directions[None, :] - directions[:, None] + np.pi) % (2 * np.pi) - np.pi)
    allowed = t.weights[360:] > 0
    assert np.degrees(turn[allowed]).max() < 50
    assert np.degrees(turn[~allowed]).min() >= 50


def test_dash_is_as_long_and_as_bright_as_its_style_says():
    line = tables(LARGE, 2).lines[180]  # along x
    assert np.flatnonzero(line[line.shape[0] // 2] > 0.5).size == pytest.approx(LARGE.dash, abs=1)
    assert line[line.shape[0] // 2].max() == pytest.approx(1, abs=0.2)  # resampling overshoots
