"""Sample sheets for eyes: what a system made of one dataset, one task a sheet, findings marked under every picture.

A sheet has columns x columns cells of equal size. Pictures are enlarged by a whole factor, nearest pixel. Under each
stand its prompt (grey), its report, and a line a finding, held against what it is compared with (see WORDS):

    ✓ green   on both sides, in the same state
    ✗ red     only the report says so
    ○ blue    only the picture has it
    ≈ amber   on both sides, but one of them is uncertain
    ! purple  the report says so and denies it too, whatever the picture has
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from medim.data.domain import Findings
from medim.data.report_grammar import ReportGrammar
from medim.evaluation import UNKNOWN, Evaluation, Reference
from medim.figures import BLACK, GREEN, GREY, RED, WHITE, Colour, Pixels, enlarge, font, wrap
from medim.metrics.contradictions import Denials
from medim.pairs import decode_png
from medim.systems import Sample

BLUE, AMBER, PURPLE, PALE = (0, 80, 190), (170, 95, 0), (125, 30, 150), (205, 205, 205)
AGREES, SAID_ONLY, SHOWN_ONLY, IN_DEGREE, DENIED = "agrees", "said only", "shown only", "in degree", "denied too"
MARKS: dict[str, tuple[str, Colour]] = {
    AGREES: ("✓", GREEN), SAID_ONLY: ("✗", RED), SHOWN_ONLY: ("○", BLUE), IN_DEGREE: ("≈", AMBER),
    DENIED: ("!", PURPLE),
}  # fmt: skip
TEXT, TITLE, LINE, TITLE_LINE, MARGIN = 13, 18, 17, 25, 10  # pixels
UNRECOGNISED = "unrecognised"  # dataset of a free sample that nothing recognises

Mark = tuple[str, str]  # kind (a key of MARKS), words
Line = tuple[str, Colour]


@dataclass(frozen=True)
class Words:
    """How a sheet speaks of one task: its title, what was given, what is compared, and a legend a mark."""

    title: str
    made: str
    compared: str
    legend: Mapping[str, str]


def _words(title: str, made: str, compared: str, said: str, shown: str) -> Words:
    both = f"{said} and {shown}"
    legend = {
        AGREES: both, SAID_ONLY: f"{said}, not {shown}", SHOWN_ONLY: f"{shown}, not {said}",
        IN_DEGREE: f"{both}, one of them as uncertain", DENIED: f"{said} and denied by the same report",
    }  # fmt: skip
    return Words(title, made, compared, legend)


WORDS = {
    "report_to_image": _words(
        "report to image", "The reports are given, the pictures are generated.",
        "Findings of the given report against those that the finding reader sees in the generated picture", "said",
        "seen",
    ),
    "image_to_report": _words(
        "image to report", "The pictures are given, the reports are generated.",
        "Findings that the generated report states against the true ones of the given picture", "stated", "true",
    ),
    "joint": _words(
        "joint", "Reports and pictures are generated, nothing is given.",
        "Findings of the generated report against those that the finding reader sees in the generated picture", "said",
        "seen",
    ),
    "prompted": _words(
        "prompted", "Prompts are given, the rest of the reports and the pictures are generated.",
        "Findings of the generated report against those that the finding reader sees in the generated picture", "said",
        "seen",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One sample. `image` (S, S, 3) uint8; `marks` None: its findings are unknown."""

    image: Pixels
    prompt: str
    report: str
    marks: tuple[Mark, ...] | None


def marks_of(said: Findings, shown: Findings, denied: Container[str] = ()) -> tuple[Mark, ...]:
    """Findings of a report against those of its picture; agreeing ones first, then as in MARKS, each by label.

    Args:
        said: of the report.
        shown: of the picture.
        denied: labels that the report denies somewhere.
    """
    found: list[Mark] = []
    for label in sorted({*said, *shown}):
        left, right = said.get(label, "absent"), shown.get(label, "absent")
        if left == right == "absent":
            continue
        if left != "absent" and label in denied:
            found.append((DENIED, f"{label} (the picture {'lacks' if right == 'absent' else 'has'} it)"))
        elif left == right:
            found.append((AGREES, _with_state(label, left)))
        elif right == "absent":
            found.append((SAID_ONLY, _with_state(label, left)))
        elif left == "absent":
            found.append((SHOWN_ONLY, _with_state(label, right)))
        else:
            side = "report" if left == "uncertain" else "picture"
            found.append((IN_DEGREE, f"{label} (uncertain in the {side})"))
    return tuple(sorted(found, key=lambda mark: list(MARKS).index(mark[0])))


def _with_state(label: str, state: str) -> str:
    return f"{label} (uncertain)" if state == "uncertain" else label


def counted(cells: Sequence[Cell]) -> tuple[Counter[str], int, int]:
    """Findings of each mark over all cells, cells without any difference, and those of them that name no finding."""
    marks = [cell.marks for cell in cells if cell.marks is not None]
    counts = Counter(kind for row in marks for kind, _ in row)
    return counts, sum(all(kind == AGREES for kind, _ in row) for row in marks), sum(not row for row in marks)


def settled(samples: Sequence[Sample], evaluation: Evaluation) -> list[Sample]:
    """Samples, free ones with the dataset that `Evaluation.turned_into` counts them to (else UNRECOGNISED)."""
    free = [sample for sample in samples if sample.task == "joint"]
    turned = iter(evaluation.turned_into(free))
    return [
        replace(sample, dataset=UNRECOGNISED if (into := next(turned)) == UNKNOWN else into)
        if sample.task == "joint"
        else sample
        for sample in samples
    ]


def sample_sheets(
    samples: Sequence[Sample], references: Mapping[str, Reference], columns: int, zoom: int
) -> dict[tuple[str, str], Image.Image]:
    """(dataset, task) -> the sheet of the first columns x columns samples of one system (of all, where fewer).

    Args:
        samples: of one table row; free ones with the dataset that they turned into (`settled`).
        references: dataset -> its real pairs.
        columns: cells of a row, >= 1.
        zoom: pixels a pixel, >= 1.
    """
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.dataset, sample.task), []).append(sample)
    sheets = {}
    for (dataset, task), group in sorted(groups.items()):
        cells = cells_of(group[: columns * columns], references.get(dataset))
        heading = heading_of(group[0].row, dataset, task, cells, len(group))
        sheets[dataset, task] = sheet_of(cells, columns, zoom, heading)
    return sheets


def sheet_of(cells: Sequence[Cell], columns: int, zoom: int, heading: Sequence[Sequence[Line]]) -> Image.Image:
    """Cells with their texts under a heading; see `draw_sheet`."""
    images = [cell.image for cell in cells]
    side = zoom * max((image.shape[0] for image in images), default=0)
    under, beside = [lines_of(cell, side) for cell in cells], [agreement(cell) for cell in cells]
    return draw_sheet(images, under, beside, columns, zoom, heading)


def cells_of(samples: Sequence[Sample], reference: Reference | None) -> list[Cell]:
    """Samples of one task with what was given to them (picture or report) and with their findings marked.

    Args:
        samples: of one dataset and task.
        reference: the dataset; None where nothing is known of it: then no finding is marked.

    Raises:
        ValueError: the pair of a sample is not in the test split.
    """
    halves = [_both_halves(sample, reference) for sample in samples]
    if reference is None or reference.domain is None or not reference.labels:
        return [Cell(image, prompt, report, None) for image, prompt, report in halves]
    grammar = reference.domain.grammar
    said = [grammar.read(report) for _, _, report in halves]
    denials = Denials(grammar) if isinstance(grammar, ReportGrammar) else None  # another one does not list its denials
    denied = [frozenset[str]() if denials is None else denials.of(report) for _, _, report in halves]
    shown: Sequence[Findings | None]
    if samples[0].task == "image_to_report":
        shown = [reference.by_id[sample.pair_id].states for sample in samples]
    else:
        shown = reference.read_images(np.stack([image for image, _, _ in halves]))
    return [
        Cell(image, prompt, report, None if right is None else marks_of(left, right, no))
        for (image, prompt, report), left, right, no in zip(halves, said, shown, denied, strict=True)
    ]


def _both_halves(sample: Sample, reference: Reference | None) -> tuple[Pixels, str, str]:
    """Picture, prompt and report of a sample, the given half from its pair."""
    if sample.image is not None and sample.report is not None:
        return sample.image, sample.prompt, sample.report
    given = None if reference is None else reference.by_id.get(sample.pair_id)
    if given is None:
        raise ValueError(
            f"pair {sample.pair_id!r} of a {sample.task} sample is not in the test split of {sample.dataset!r}: "
            f"run `dvc repro generate`"
        )
    if sample.image is None:
        return decode_png(given.image), sample.prompt, sample.report or ""
    return sample.image, given.prompt, given.report


def heading_of(row: str, dataset: str, task: str, cells: Sequence[Cell], total: int) -> list[list[Line]]:
    """Lines over a sheet, each of parts with a colour: title, what was made, how much agrees, the legend with counts.

    Args:
        row: table row of the system.
        dataset: of the samples.
        task: of the samples.
        cells: what the sheet shows.
        total: samples that there are.
    """
    words = WORDS[task]
    of = f"the {total} pairs that count as {dataset}" if task == "joint" else f"{total} samples"
    heading: list[list[Line]] = [
        [(f"{dataset} · {words.title} · {row}", BLACK)],
        [(f"{words.made} Shown: {len(cells)} of {of}.", BLACK)],
    ]
    if all(cell.marks is None for cell in cells):
        return [*heading, [("The findings of this dataset are not known: nothing is compared.", GREY)]]
    counts, whole, silent = counted(cells)
    known = sum(cell.marks is not None for cell in cells)
    agree = (
        f"{counts[AGREES]} of {counts.total()} findings agree. {whole} of {known} samples agree in all of their "
        f"findings; {silent} of these have none on either side."
    )
    legend = [(f"{sign} {words.legend[kind]}: {counts[kind]}", colour) for kind, (sign, colour) in MARKS.items()]
    return [*heading, [(f"{words.compared}:", BLACK)], [(agree, BLACK)], legend]


def lines_of(cell: Cell, width: int) -> list[Line]:
    """The lines under a picture: prompt, report, marks."""
    face = font(size=TEXT)
    lines: list[Line] = [(line, GREY) for line in wrap(cell.prompt, width, face)]
    report = [(line, BLACK) for line in wrap(cell.report, width, face)]
    lines += report or [("(the report is empty)", GREY)]
    if cell.marks is None:
        return lines
    lines.append(("", BLACK))
    for kind, words in cell.marks:
        sign, colour = MARKS[kind]
        lines += [(line, colour) for line in wrap(f"{sign} {words}", width, face)]
    return lines if cell.marks else [*lines, ("no finding on either side", GREY)]


def agreement(cell: Cell) -> Line:
    """What stands beside a cell's number."""
    if not cell.marks:
        return "", BLACK
    agree = sum(kind == AGREES for kind, _ in cell.marks)
    return f"{agree} of {len(cell.marks)} agree", GREEN if agree == len(cell.marks) else BLACK


def draw_sheet(
    images: Sequence[Pixels], under: Sequence[Sequence[Line]], beside: Sequence[Line], columns: int, zoom: int,
    heading: Sequence[Sequence[Line]],
) -> Image.Image:  # fmt: skip
    """Numbered pictures in rows of `columns`, all cells of one size, under a heading.

    Args:
        images: N pictures (S, S, 3) uint8.
        under: N times the lines under a picture, none wider than zoom * the largest S.
        beside: N lines that stand beside the numbers.
        columns: cells of a row, >= 1.
        zoom: pixels a pixel, >= 1.
        heading: lines of coloured parts; the first is the title.

    Raises:
        ValueError: there is no picture.
    """
    if not images:
        raise ValueError("a sheet needs at least one sample: run `dvc repro generate`")
    side, columns = zoom * max(image.shape[0] for image in images), min(columns, len(images))
    wide, high = side + 2 * MARGIN, LINE + side + max(map(len, under)) * LINE + MARGIN
    width = columns * wide
    title = wrap(heading[0][0][0], width - 2 * MARGIN, font(True, TITLE))
    rest, rows = _flow(heading[1:], width - 2 * MARGIN)
    first = MARGIN + len(title) * TITLE_LINE  # where the lines after the title begin
    top = first + rows * LINE + MARGIN
    page = Image.new("RGB", (width + 1, top + -(-len(images) // columns) * high + 1), WHITE)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(title):
        draw.text((MARGIN, MARGIN + number * TITLE_LINE), line, BLACK, font(True, TITLE))
    for x, y, words, colour in rest:
        draw.text((MARGIN + x, first + y * LINE), words, colour, font(size=TEXT))
    for number, (image, lines, note) in enumerate(zip(images, under, beside, strict=True)):
        row, column = divmod(number, columns)
        x, y = column * wide, top + row * high
        draw.rectangle((x, y, x + wide, y + high), outline=PALE)
        draw.text((x + MARGIN, y + 2), str(number + 1), BLACK, font(True, TEXT))
        right = x + MARGIN + side - round(font(size=TEXT).getlength(note[0]))
        draw.text((right, y + 2), note[0], note[1], font(size=TEXT))
        page.paste(enlarge(image, side), (x + MARGIN, y + LINE + 3))
        for place, (words, colour) in enumerate(lines):
            draw.text((x + MARGIN, y + LINE + side + 5 + place * LINE), words, colour, font(size=TEXT))
    return page


def _flow(lines: Sequence[Sequence[Line]], width: int) -> tuple[list[tuple[int, int, str, Colour]], int]:
    """Lines of coloured parts -> (x in pixels, y in lines, words, colour) and the number of lines.

    A part that does not fit beside the one before goes on a new line.
    """
    face, y = font(size=TEXT), 0
    placed: list[tuple[int, int, str, Colour]] = []
    gap = round(face.getlength("    "))
    for line in lines:
        x = 0
        for words, colour in line:
            for number, part in enumerate(wrap(words, width, face)):
                length = round(face.getlength(part))
                if number or (x and x + length > width):
                    x, y = 0, y + 1
                placed.append((x, y, part, colour))
                x += length + gap
        y += 1
    return placed, y
