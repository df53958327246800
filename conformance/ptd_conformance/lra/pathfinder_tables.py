"""What the Pathfinder generator draws with: every dash, mask, turn and marker there can be, made once.

Axes: y down, x right; an angle a points along (sin a, cos a). A dash is drawn A times as large as a straight line and
brought down by Lanczos resampling, as is its mask, the line widened by the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Directions of a snake's first dash, in whole degrees from -180; a direction index below SEEDS is one of them,
#: SEEDS + j belongs to the j-th candidate around a pivot.
SEEDS = 360
FREE = 0.3


@dataclass(frozen=True)
class Style:
    """What one of the two tasks looks like. Lengths in pixels.

    Attributes:
        side: of the square image.
        dash, thickness: length and thickness of a dash.
        margins: one is drawn per image, equally likely; two entries.
        dashes: of each of the two long snakes.
        distractor_dashes, distractors: dashes of a distractor, and how many there may be.
        continuity: c; a snake turns by at most 90/c degrees per dash.
        seed_distance: between the two long snakes' first tails.
        marker_radius: of the two disks.
        contrast, distractor_contrast: of dashes, in units of the disks.
        border: of the image that stays free.
        scale: A, how much larger lines are drawn before resampling.
    """

    side: int
    dash: int
    thickness: float
    margins: tuple[int, int]
    continuity: float
    seed_distance: int
    marker_radius: float
    contrast: float
    distractor_contrast: float
    distractors: int
    dashes: int = 14
    distractor_dashes: int = 4
    border: int = 1
    scale: int = 2


#: The hard sets of the Long Range Arena. Contrasts of Path-X are those measured on the released images.
STYLES = {
    "pathfinder": Style(32, 2, 0.5, (1, 1), 1.0, 7, 1.5, 2 * 0.75, 2.0, 10),
    "pathx": Style(128, 5, 1.5, (2, 3), 1.8, 20, 3.0, 0.82, 0.82, 17),
}


class Tables(NamedTuple):
    """The tables of one margin; D directions, n candidates. Offsets are (y, x) in pixels."""

    lines: NDArray[np.float32]  # (D, 2H+1, 2H+1) a dash drawn from its centre
    masks: NDArray[np.float32]  # (D, 2H+1, 2H+1) the dash widened by the margin
    advance: NDArray[np.int64]  # (D, 2) from a pivot to the next
    candidates: NDArray[np.int64]  # (n, 2) from a pivot to the heads a dash may have
    weights: NDArray[np.float64]  # (D, n) of a candidate, by the turn it takes
    heads: NDArray[np.int64]  # (SEEDS, 2) from a first tail to its head
    pivots: NDArray[np.int64]  # (SEEDS, 2) from a first tail to its pivot
    around: NDArray[np.int64]  # (360, 2) from the first snake's tail to the second's, by angle
    near: NDArray[np.int64]  # (k, 2) the disk of the margin
    reach: NDArray[np.int64]  # (SEEDS + 1,) where each direction's rows of touched begin
    touched: NDArray[np.int64]  # (., 2) what a first dash must find free, from its tail; none where it cannot begin
    starts: NDArray[np.int64]  # (SEEDS + 1,) where each direction's rows of open begin
    open: NDArray[np.int64]  # (., 2) tails a long snake may start from in the empty image
    disk: NDArray[np.float32]  # (., .) a marker


def tables(style: Style, margin: int) -> Tables:
    """The tables of a style and margin."""
    L = style.dash
    H = L + math.ceil(style.thickness) + margin
    seeds = np.radians(np.arange(-180, 180))
    candidates, directions = _candidates(L + margin)
    # A later dash is drawn from its head back to the pivot.
    drawn = np.concatenate([seeds, directions + np.pi])
    dashes = [_dash(angle, style, margin, H) for angle in drawn]
    lines, masks = (np.stack([dash[i] for dash in dashes]) for i in (0, 1))
    heads = _moved(np.zeros((SEEDS, 2)), L, seeds)
    travelled = np.concatenate([seeds, directions])
    touched = [_touched(mask, L + margin, H, style.side) for mask in masks[:SEEDS]]
    opened = [_open(offsets, style) for offsets in touched]
    return Tables(
        lines,
        masks,
        _moved(np.zeros((len(drawn), 2)), L + 2 * margin, travelled),
        candidates,
        _weights(travelled, directions, style.continuity),
        heads,
        _moved(heads, L + margin, seeds + np.pi),
        np.round(style.seed_distance * _unit(np.radians(np.arange(360)))).astype(np.int64),
        np.argwhere(_disk(margin)) - margin,
        _ends(touched),
        np.concatenate(touched),
        _ends(opened),
        np.concatenate(opened),
        _marker(style),
    )


def _unit(angle: NDArray) -> NDArray:
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


#: Added before rounding up or down, as coordinates of the original are: sin(pi) must not become the next pixel.
_SHIFT = 64.0


def _moved(point: NDArray, distance: float, angle: NDArray) -> NDArray[np.int64]:
    return (np.ceil(_SHIFT + point + distance * _unit(angle)) - _SHIFT).astype(np.int64)


def _candidates(radius: int) -> tuple[NDArray[np.int64], NDArray]:
    """Pixels one radian's arc of a pixel apart on the circle, and their directions."""
    angles = np.radians(np.arange(0, 360, 360 / (2 * np.pi * radius)))
    offsets = np.unique(np.floor(_SHIFT + radius * _unit(angles)) - _SHIFT, axis=0).astype(np.int64)
    return offsets, np.arctan2(offsets[:, 0], offsets[:, 1])


def _weights(last: NDArray, directions: NDArray, continuity: float) -> NDArray:
    """cos(min(c turn, pi/2))^2."""
    turn = np.abs((directions - last[:, None] + np.pi) % (2 * np.pi) - np.pi)
    weight = np.cos(np.minimum(continuity * turn, np.pi / 2)) ** 2
    return np.where(continuity * turn < np.pi / 2, weight, 0.0)


def _disk(radius: float) -> NDArray[np.bool_]:
    r = int(radius)
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    return x**2 + y**2 <= radius**2


def _resized(image: NDArray, side: int) -> NDArray[np.float32]:
    from PIL import Image

    whole = Image.fromarray(image.astype(np.float32))
    return np.asarray(whole.resize((side, side), Image.Resampling.LANCZOS), np.float32)


def _dash(angle: float, style: Style, margin: int, H: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A dash of contrast 1 and its mask, both (2H+1, 2H+1) with the start in the middle."""
    from PIL import Image, ImageDraw
    from scipy.ndimage import binary_dilation

    A, centre = style.scale, style.scale * H
    y, x = (int(v) for v in _moved(np.full(2, centre), style.dash * A, np.asarray(angle)))
    canvas = Image.new("L", (2 * centre + 1, 2 * centre + 1))
    ImageDraw.Draw(canvas).line([(centre, centre), (x, y)], fill=1, width=round(style.thickness * A))
    line = np.asarray(canvas) > 0
    return _resized(line, 2 * H + 1), _resized(binary_dilation(line, _disk(margin * A)), 2 * H + 1)


def _touched(mask: NDArray[np.float32], reach: int, H: int, side: int) -> NDArray[np.int64]:
    """Offsets at which a first dash's mask is 1 or more, seen one pixel down-right of the tail.

    None in a direction in which, from some pixel, all of them lie outside the image. What the original finds at such a
    pixel is less than nothing, and any such number it takes for a full image: no dash begins there, wherever. So it is
    with 299 of Pathfinder's 360 directions, and with none of Path-X's.
    """
    offsets = np.argwhere(mask >= 1) - H + 1
    offsets = offsets[np.all(np.abs(offsets) <= reach, axis=1)]
    corners = (side - 1) * np.argwhere(np.ones((2, 2), bool))  # where most of them do
    seen = np.any(np.all(_inside(corners[:, None, :] + offsets, 0, side), axis=2), axis=1)
    return offsets if np.all(seen) else offsets[:0]


def _inside(places: NDArray[np.int64], first: int, end: int) -> NDArray[np.bool_]:
    return (places >= first) & (places < end)


def _open(touched: NDArray[np.int64], style: Style) -> NDArray[np.int64]:
    """Pixels from which a first dash stays clear of the border of twice the seed distance."""
    border = 2 * style.seed_distance
    pixels = np.argwhere(np.ones((style.side, style.side), bool))
    if not len(touched):
        return pixels[:0]
    reached = pixels[:, None, :] + touched
    blocked = np.all(_inside(reached, 0, style.side), 2)
    blocked &= ~np.all(_inside(reached, border, style.side - border), 2)
    return pixels[~np.any(blocked, axis=1)]


def _ends(parts: list[NDArray]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def _marker(style: Style) -> NDArray[np.float32]:
    """A disk of value 1, with the overshoot that resampling without clipping gives it."""
    A, R = style.scale, style.marker_radius
    half = math.ceil(R) + 3
    y, x = np.mgrid[: A * (2 * half + 1), : A * (2 * half + 1)]
    return _resized((y - A * half) ** 2 + (x - A * half) ** 2 <= (R * A) ** 2, 2 * half + 1)
