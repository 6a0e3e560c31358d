"""Draws the pages of 64 phantoms that the README shows: python -m benchmarks.phantom_pages"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medim.data import DOMAINS
from medim.data.splits import drawn_pairs
from medim.pairs import load_images

OUT = Path("docs/images")
SIDE, ROWS = 64, 8


def page(dataset: str) -> Image.Image:
    """8 x 8 training pictures of a drawn dataset, side by side."""
    images = load_images(drawn_pairs(dataset, "train", 0, ROWS * ROWS, SIDE))
    grid = images.reshape(ROWS, ROWS, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(ROWS * SIDE, ROWS * SIDE, 3)
    return Image.fromarray(np.ascontiguousarray(grid))


def main() -> None:
    """Write one PNG a dataset."""
    OUT.mkdir(parents=True, exist_ok=True)
    for dataset in DOMAINS:
        path = OUT / f"{dataset}.png"
        page(dataset).save(path)
        print(path)


if __name__ == "__main__":
    main()
