"""Draws the pages of drawn pairs that the README shows: python -m benchmarks.phantom_pages

Four training pairs a dataset: picture, prompt, report, and the findings of the recorded scene.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from medim.data import DOMAINS
from medim.data.splits import drawn_pairs
from medim.figures import BLACK, GREEN, GREY, font, save_png, wrap
from medim.pairs import load_images
from medim.sample_sheets import TEXT, Line, draw_sheet

OUT = Path("docs/images")
SIDE, COLUMNS, COUNT, ZOOM, SEED = 64, 4, 4, 3, 0


def page(dataset: str) -> Image.Image:
    """The first training pairs of a drawn dataset."""
    pairs = list(drawn_pairs(dataset, "train", SEED, COUNT, SIDE))
    face, width = font(size=TEXT), SIDE * ZOOM
    under: list[list[Line]] = []
    for pair in pairs:
        lines: list[Line] = [(line, GREY) for line in wrap(pair.prompt, width, face)]
        lines += [(line, BLACK) for line in wrap(pair.report, width, face)]
        found = [f"{label} ({state})" for label, state in sorted(pair.states.items()) if state != "absent"]
        for words in found:
            lines += [(line, GREEN) for line in wrap(f"+ {words}", width, face)]
        under.append(lines)
    said = f"The first {len(pairs)} training pairs of seed {SEED}, {SIDE} pixels, with prompt and report"
    heading: list[list[Line]] = [[(dataset, BLACK)], [(said, BLACK)]]
    if any(pair.states for pair in pairs):
        heading[1] += [("and the findings of the recorded scene", GREEN)]
    return draw_sheet(list(load_images(pairs)), under, [("", BLACK)] * len(pairs), COLUMNS, ZOOM, heading)


def main() -> None:
    """Write one PNG a dataset."""
    for dataset in DOMAINS:
        path = OUT / f"{dataset}.png"
        save_png(page(dataset), path)
        print(path)


if __name__ == "__main__":
    main()
