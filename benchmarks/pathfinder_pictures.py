"""Generated Pathfinder images beside original ones: a picture, and the statistics of both.

    python benchmarks/pathfinder_pictures.py pathfinder_ref.npz --out pathfinder.png

The npz holds original images as uint8 arrays (samples, side, side), under names that contain "32" or "path64" and "128"
or "pathx"; those of another side than 32 or 128 are left out.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ptd.parameters import replace_file
from ptd_conformance.lra.pathfinder import Generator
from ptd_conformance.lra.pathfinder_tables import STYLES

ROW = {32: 16, 128: 4}
SCALE = {32: 2, 128: 1}


def statistics(name: str, images: np.ndarray) -> str:
    """One line: mean, deviation, share of lit pixels, lit mass per image."""
    values = images.astype(float)
    mass = values.sum((1, 2)) / 255
    lit = ", ".join(f"> {level} {(values > level).mean():.4f}" for level in (64, 128))
    return (
        f"{name:24} n {len(images):5}  mean {values.mean():6.2f}  deviation {values.std():6.2f}  {lit}  "
        f"mass {mass.mean():6.1f} +- {mass.std():.1f}"
    )


def row(images: np.ndarray) -> np.ndarray:
    """The first images side by side, enlarged to 64 or 128 pixels, with a margin."""
    side = images.shape[1]
    picked = np.repeat(np.repeat(images[: ROW[side]], SCALE[side], 1), SCALE[side], 2)
    line = np.concatenate(list(np.pad(picked, ((0, 0), (0, 4), (0, 4)), constant_values=90)), axis=1)
    return np.pad(line, ((0, 0), (0, 1100 - line.shape[1])), constant_values=90)


def main() -> None:
    """Generate, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path)
    parser.add_argument("--out", type=Path, default=Path("pathfinder.png"))
    parser.add_argument("--samples", type=int, default=400)
    arguments = parser.parse_args()
    originals = np.load(arguments.originals)
    rows = []
    for style in STYLES.values():
        count = arguments.samples if style.side == 32 else arguments.samples // 4
        images = Generator(style, 0).images(0, count)[0].reshape(-1, style.side, style.side)
        print(statistics(f"generated {style.side}", images))
        rows.append(row(images))
        for name in originals.files:
            if originals[name].ndim == 3 and originals[name].shape[1] == style.side:
                print(statistics(name, originals[name]))
                rows.append(row(originals[name]))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, format="png")
    replace_file(arguments.out, file.getvalue())
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
