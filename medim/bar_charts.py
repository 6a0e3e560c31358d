"""Figures 5a, 5b, 5c, 6a and 6b as bar charts: the values of their tables with their intervals.

Drawn with PIL alone, like medim.figures: the same table gives the same bytes. Bars begin at 0. Rows of gains are not
drawn, they are the differences between bars; the trivial rules are grey.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from medim.figures import BLACK, GREY, MARGIN, WHITE, Colour, font, wrap
from medim.table_render import is_gain
from medim.tables import HUMAN_METRICS, JUDGED, TRIVIAL

Built = Mapping[str, Any]

CHARTS = ("figure5a", "figure5b", "figure5c", "figure6a", "figure6b")
REPORT_BARS = (  # metrics of the paper's charts, then what phantoms are judged by
    "BLEU-1 (nltk)", "BLEU-2 (nltk)", "BLEU-3 (nltk)", "METEOR (nltk)", "ROUGE-L (nltk)", "METEOR (coco)", "finding_f1",
)  # fmt: skip
SHARES = tuple(metric for metric in HUMAN_METRICS if metric.endswith(")"))  # of people's answers; scales go to 5
PAIR_BARS = (  # the paper's judge and people first, then what phantoms are judged by
    *JUDGED, *SHARES, "alignment (phantom judge)", "finding_f1", "sentence_validity",
)  # fmt: skip
COLOURS: tuple[Colour, ...] = (
    (70, 110, 170), (225, 140, 40), (60, 150, 90), (150, 100, 170), (190, 70, 70), (110, 90, 70),
)  # fmt: skip
PALE: Colour = (228, 228, 228)
GREYS: tuple[Colour, ...] = ((130, 130, 130), (165, 165, 165), (195, 195, 195))
BAR, GAP, GROUP_GAP, NARROWEST, HEIGHT, LEFT, LINE = 18, 3, 26, 110, 260, 52, 15  # pixels
TEXT, TITLE, SMALL = 12, 15, 10  # font sizes
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # a tick is one of these times a power of ten


@dataclass(frozen=True)
class Bar:
    """One value with its interval; None: not measured."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Group:
    """The bars of one column, a series each."""

    title: str
    bars: tuple[Bar, ...]


def bar_chart(built: Built) -> Image.Image | None:
    """The chart of a built table; None where no row but the trivial ones is measured.

    Raises:
        KeyError: the table has no chart.
    """
    if built["id"] not in CHARTS:
        raise KeyError(f"no chart of {built['id']!r}, there are {', '.join(CHARTS)}")
    wanted = PAIR_BARS if built["id"] == "figure5a" else REPORT_BARS
    cells = [c for c in built["cells"] if c["metric"] in wanted and not is_gain(c["row"])]
    series = [row for row in dict.fromkeys(c["row"] for c in cells) if _measured(cells, "row", row)]
    columns = [column for column in dict.fromkeys(c["column"] for c in cells) if _measured(cells, "column", column)]
    if all(row.startswith(TRIVIAL) for row in series):
        return None
    place = {(c["row"], c["column"]): c for c in cells}
    groups = [
        Group(column.replace("/", " "), tuple(_bar(place.get((row, column))) for row in series)) for column in columns
    ]
    return draw_bars(built["title"], series, colours_of(series), groups)


def _measured(cells: Sequence[Mapping[str, Any]], field: str, name: str) -> bool:
    return any(c[field] == name and c["value"] is not None for c in cells)


def _bar(cell: Mapping[str, Any] | None) -> Bar:
    return Bar(None, None, None) if cell is None else Bar(cell["value"], cell["low"], cell["high"])


def colours_of(series: Sequence[str]) -> list[Colour]:
    """A colour a series; those of trivial rules are greys."""
    out: list[Colour] = []
    ordinary = trivial = 0
    for name in series:
        if name.startswith(TRIVIAL):
            out.append(GREYS[trivial % len(GREYS)])
            trivial += 1
        else:
            out.append(COLOURS[ordinary % len(COLOURS)])
            ordinary += 1
    return out


def ticks(largest: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to at least `largest`, about so many; `largest` > 0."""
    power = 10.0 ** math.floor(math.log10(largest / about))
    step = next(power * factor for factor in STEPS if power * factor * about >= largest * (1 - 1e-9))
    count = math.ceil(largest / step - 1e-9)
    return [number * step for number in range(count + 1)]


def draw_bars(title: str, series: Sequence[str], colours: Sequence[Colour], groups: Sequence[Group]) -> Image.Image:
    """Groups of bars on one axis under a legend; a bar that was not measured is a small cross on the axis.

    Raises:
        ValueError: there is no bar, a value is negative, or a group has not a bar for every series.
    """
    values = [number for g in groups for b in g.bars for number in (b.value, b.high) if number is not None]
    if not values or min(values) < 0 or any(len(g.bars) != len(series) for g in groups):
        raise ValueError(f"a chart needs bars of values >= 0, one a series in each group, got {len(groups)} groups")
    marks = ticks(max(values) or 1.0)
    bars = len(series) * (BAR + GAP) - GAP
    wide = max(bars, NARROWEST)
    width = max(LEFT + len(groups) * (wide + GROUP_GAP) + MARGIN, 480)
    legend = _legend(series, width)
    top = MARGIN + TITLE + 6 + (1 + max(y for _, y, _ in legend)) * LINE + LINE + 6
    labels = [wrap(group.title, wide + GROUP_GAP - 6, font(size=SMALL)) for group in groups]
    page = Image.new("RGB", (width, top + HEIGHT + 6 + max(map(len, labels)) * 12 + MARGIN), WHITE)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), title, BLACK, font(True, TITLE))
    for (x, y, name), colour in zip(legend, colours, strict=True):
        down = MARGIN + TITLE + 6 + y * LINE
        draw.rectangle((x, down + 2, x + 9, down + 11), colour)
        draw.text((x + 14, down - 1), name, BLACK, font(size=TEXT))
    for mark in marks:
        y = _height(mark, marks[-1], top)
        draw.line((LEFT, y, width - MARGIN, y), GREY if mark == 0 else PALE)
        text = f"{mark:g}"
        draw.text((LEFT - 6 - font(size=SMALL).getlength(text), y - 6), text, GREY, font(size=SMALL))
    for number, (group, label) in enumerate(zip(groups, labels, strict=True)):
        left = LEFT + GROUP_GAP // 2 + number * (wide + GROUP_GAP)
        _draw_group(draw, group, colours, left + (wide - bars) // 2, top, marks[-1])
        for line, words in enumerate(label):
            middle = left + (wide - font(size=SMALL).getlength(words)) / 2
            draw.text((middle, top + HEIGHT + 6 + line * 12), words, BLACK, font(size=SMALL))
    return page


def _legend(series: Sequence[str], width: int) -> list[tuple[int, int, str]]:
    """(x in pixels, line, name) of each series; a name that does not fit beside the one before begins a new line."""
    placed: list[tuple[int, int, str]] = []
    x, y = MARGIN, 0
    for name in series:
        length = 14 + round(font(size=TEXT).getlength(name)) + 16
        if x > MARGIN and x + length > width:
            x, y = MARGIN, y + 1
        placed.append((x, y, name))
        x += length
    return placed


def _height(value: float, largest: float, top: int) -> int:
    return round(top + HEIGHT * (1 - value / largest))


def _draw_group(
    draw: ImageDraw.ImageDraw, group: Group, colours: Sequence[Colour], left: int, top: int, largest: float
) -> None:
    floor = top + HEIGHT
    for number, (bar, colour) in enumerate(zip(group.bars, colours, strict=True)):
        x = left + number * (BAR + GAP)
        middle = x + BAR // 2
        if bar.value is None:
            draw.line((middle - 3, floor - 7, middle + 3, floor - 1), GREY)
            draw.line((middle - 3, floor - 1, middle + 3, floor - 7), GREY)
            continue
        y = _height(bar.value, largest, top)
        if y < floor:
            draw.rectangle((x, y, x + BAR - 1, floor - 1), colour)
        upper = y
        if bar.low is not None and bar.high is not None:
            upper, lower = (_height(end, largest, top) for end in (bar.high, bar.low))
            draw.line((middle, upper, middle, lower), BLACK)
            for end in (upper, lower):
                draw.line((middle - 3, end, middle + 3, end), BLACK)
        text = f"{bar.value:.2f}".removeprefix("0")
        draw.text((middle - font(size=SMALL).getlength(text) / 2, min(upper, y) - 13), text, BLACK, font(size=SMALL))
