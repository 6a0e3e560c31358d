"""Pictures of pictures: panels with marked findings, the paper's Figures 4, 7 and 8, reconstructions; by PIL alone.

The same pictures and texts give the same bytes: nothing is blurred, the font is the one that comes with matplotlib, and
`save_png` writes no metadata. Pictures are (S, S, 3) uint8 and are enlarged by whole factors without interpolation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from medim.evaluation import Reference
    from medim.systems import Sample

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

BLACK, GREY, WHITE = (20, 20, 20), (120, 120, 120), (255, 255, 255)
GREEN, RED = (0, 125, 50), (195, 25, 25)
AGREES, DISAGREES = "agrees", "disagrees"
COLOURS = {AGREES: GREEN, DISAGREES: RED, None: BLACK}
FONT_SIZE, LINE, MARGIN, GAP = 12, 15, 8, 4  # pixels; GAP: between pictures of a page without texts


@dataclass(frozen=True)
class Panel:
    """A picture (None: an empty frame), lines above and below it, and its findings, each marked."""

    image: Pixels | None
    title: str = ""
    text: str = ""
    findings: tuple[tuple[str, str | None], ...] = ()  # (words, AGREES, DISAGREES or None)


@cache
def font(bold: bool = False, size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of matplotlib's package, `size` pixels high."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def enlarge(image: Pixels, side: int) -> Image.Image:
    """(S, S, 3) -> a square of the largest multiple of S up to `side` (S itself if that is larger), nearest pixel."""
    factor = max(1, side // image.shape[0])
    return Image.fromarray(np.repeat(np.repeat(image, factor, 0), factor, 1), "RGB")


def wrap(text: str, width: int, face: ImageFont.FreeTypeFont | None = None) -> list[str]:
    """Words -> lines of at most `width` pixels; a word that is longer is broken.

    Args:
        text: words; what separates them is not kept.
        width: pixels, at least those of the widest letter.
        face: the font, None: `font()`.
    """
    face = face or font()
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines += _broken(word, width, face)
    return lines


def _broken(word: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    """A word in parts of at most `width` pixels and at least one letter."""
    parts = [word[0]]
    for letter in word[1:]:
        if face.getlength(parts[-1] + letter) <= width:
            parts[-1] += letter
        else:
            parts.append(letter)
    return parts


def compare_findings(said: Mapping[str, str], shown: Mapping[str, str]) -> tuple[tuple[str, str | None], ...]:
    """Findings of a report against those of its picture (label -> state), by label; what both leave out is left out.

    Equal states agree. 'only said' and 'only shown' and two different states disagree.
    """
    out: list[tuple[str, str | None]] = []
    for label in sorted({*said, *shown}):
        left, right = said.get(label, "absent"), shown.get(label, "absent")
        if left == right:
            out.append((f"✓ {label}: {left}", AGREES))
        else:
            out.append((f"✗ {label}: report {left}, picture {right}", DISAGREES))
    return tuple(out)


def disagreement(said: Mapping[str, str], shown: Mapping[str, str]) -> float:
    """How far report and picture are apart: the sum over labels of |v(said) - v(shown)|, v as in `VALUE`."""
    from medim.data.domain import VALUE

    labels = {*said, *shown}
    return sum(abs(VALUE[said.get(label, "absent")] - VALUE[shown.get(label, "absent")]) for label in labels)


def worst_cases(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` largest scores, largest first; equal ones in order."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def _lines(panel: Panel, width: int) -> list[tuple[str, Colour]]:
    lines = [(line, BLACK) for line in wrap(panel.text, width)]
    for words, mark in panel.findings:
        lines += [(line, COLOURS[mark]) for line in wrap(words, width)]
    return lines


def draw_grid(panels: Sequence[Sequence[Panel]], side: int, heading: str = "") -> Image.Image:
    """Rows of panels as one page; each row is as high as its longest text. `side`: pixels a picture takes at most.

    Raises:
        ValueError: there is no panel.
    """
    if not panels or not panels[0]:
        raise ValueError("a figure needs at least one panel: nothing was generated, run `dvc repro generate`")
    pictures = [panel.image for row in panels for panel in row if panel.image is not None]
    cell = max([side, *(picture.shape[1] for picture in pictures)])
    heights = [cell + (2 + max(len(_lines(panel, cell)) for panel in row)) * LINE + MARGIN for row in panels]
    columns = max(len(row) for row in panels)
    top = LINE + MARGIN if heading else 0
    page = Image.new("RGB", (columns * (cell + MARGIN) + MARGIN, top + sum(heights) + MARGIN), WHITE)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN // 2), heading, BLACK, font(True))
    y = top
    for row, height in zip(panels, heights, strict=True):
        for number, panel in enumerate(row):
            _draw_panel(page, draw, panel, (MARGIN + number * (cell + MARGIN), y), cell)
        y += height
    return page


def _draw_panel(page: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, corner: tuple[int, int], cell: int) -> None:
    x, y = corner
    draw.text((x, y + 2), _cut(panel.title, cell), BLACK, font(True))
    y += LINE + 2
    if panel.image is None:
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=GREY)
    else:
        page.paste(enlarge(panel.image, cell), (x, y))
    y += cell + 3
    for line, colour in _lines(panel, cell):
        draw.text((x, y), line, colour, font())
        y += LINE


def _cut(title: str, width: int) -> str:
    while title and font(True).getlength(title) > width:
        title = title[:-2].rstrip() + "…" if len(title) > 2 else ""
    return title


def save_png(page: Image.Image, path: Path) -> None:
    """Write a page: the same pixels give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, "PNG", compress_level=9)


def reference_of(sample: Sample, references: Mapping[str, Reference]) -> Reference | None:
    """The dataset of a sample; a free sample (of no dataset) is taken for what its picture looks like to the reader.

    None where the reader was trained on none of the datasets.
    """
    if sample.dataset in references:
        return references[sample.dataset]
    from medim.metrics.finding_reader import domains_of

    first = next(iter(references.values()))
    known = [name for name in references if name in first.reader.config.domains]
    if sample.image is None or not known:
        return None
    return references[domains_of(first.reader, sample.image[None], known)[0]]


def panel_of(sample: Sample, references: Mapping[str, Reference]) -> tuple[Panel, float]:
    """A sample with what it was given (picture or report), its findings marked, and its `disagreement`.

    image_to_report: true picture, generated report, held against the true findings where known. report_to_image: given
    report, generated picture as the finding reader reads it. joint: both generated.
    """
    reference = reference_of(sample, references)
    given = reference.by_id.get(sample.pair_id) if reference is not None else None
    image, report, prompt = sample.image, sample.report, sample.prompt
    if image is None and given is not None:
        image = _pixels(given.image)
    if report is None and given is not None:
        report, prompt = given.report, given.prompt
    title = ", ".join([*([reference.dataset] if reference is not None else []), sample.task.replace("_", " ")])
    text = f"{prompt}: {report or ''}".strip(": ")
    if reference is None or reference.domain is None or image is None or not reference.labels:
        return Panel(image, title, text), 0.0
    said = reference.domain.grammar.read(report or "")
    true = json.loads(given.findings) if given is not None and given.findings and sample.image is None else None
    shown = reference.read_images(image[None])[0] if true is None else true
    return Panel(image, title, text, compare_findings(said, shown)), disagreement(said, shown)


def _pixels(png: bytes) -> Pixels:
    from medim.pairs import decode_png

    return decode_png(png)


def figure4(systems: Mapping[str, Sequence[Panel]], side: int) -> Image.Image:
    """All systems on the same prompts: a row a prompt, a column a system (in the order given).

    Raises:
        ValueError: a system has another number of panels.
    """
    return draw_grid(_side_by_side(systems), side, "All systems, same prompts")


def figure7(variants: Mapping[str, Sequence[Panel]], side: int) -> Image.Image:
    """The ablation on the same prompts: a row a prompt, a column a variant."""
    return draw_grid(_side_by_side(variants), side, "Ablation, same prompts")


def figure8(cases: Sequence[tuple[Panel, float]], columns: int, count: int, side: int) -> Image.Image:
    """The `count` worst cases: those whose report and picture disagree most (`disagreement`), worst first."""
    heading = "Worst cases: findings on one side only count 1, where one side is uncertain 1/2"
    worst = [cases[i] for i in worst_cases([score for _, score in cases], count)]
    panels = [
        Panel(panel.image, f"{panel.title}: {score:g} apart", panel.text, panel.findings) for panel, score in worst
    ]
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    return draw_grid(rows, side, heading)


def _side_by_side(systems: Mapping[str, Sequence[Panel]]) -> list[list[Panel]]:
    lengths = {name: len(panels) for name, panels in systems.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"every system must answer the same prompts, got {lengths}: run `dvc repro generate`")
    return [
        [Panel(panel.image, name, panel.text, panel.findings) for name, panel in zip(systems, row, strict=True)]
        for row in zip(*systems.values(), strict=True)
    ]


def reconstruction_page(shown: Mapping[str, tuple[Pixels, Pixels]], columns: int, zoom: int) -> Image.Image:
    """Per dataset a row of test pictures above a row of their reconstructions, enlarged without blur.

    Args:
        shown: dataset -> (pictures, reconstructions), each (N, S, S, 3) uint8; the first `columns` of them are drawn.
        columns: pictures of a row, >= 1.
        zoom: pixels a pixel, >= 1.
    """
    rows = {
        f"{dataset} · {what}": pictures[:columns]
        for dataset, pair in shown.items()
        for what, pictures in zip(("test pictures", "reconstructed from their codes"), pair, strict=True)
    }
    sides = [zoom * pictures.shape[1] for pictures in rows.values()]
    width = max(len(row) * (side + GAP) for row, side in zip(rows.values(), sides, strict=True)) + GAP
    page = Image.new("RGB", (width, sum(LINE + side + 2 * GAP for side in sides)), WHITE)
    draw, y = ImageDraw.Draw(page), 0
    for (words, pictures), side in zip(rows.items(), sides, strict=True):
        draw.text((GAP, y), words, BLACK, font(True))
        for column, picture in enumerate(pictures):
            page.paste(enlarge(picture, side), (GAP + column * (side + GAP), y + LINE + GAP))
        y += LINE + side + 2 * GAP
    return page
