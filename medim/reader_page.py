"""The page on which people rate generated pairs (Figure 5a): one HTML file that needs no network, and its key apart.

The paper shows readers 100 freely generated pairs, half of each domain, and compares UniDisc with MeDiM. Here too a
study shows as many pairs of each system, and within a system as many of each dataset as can be. What the page holds of
a pair is a random id, the dataset, the picture and the report; the pairs stand in the order of their ids, and each
reader is shown them in an order of his own. Ids are drawn from the seed, so a reader should know neither seed nor key.
What readers send back is read by medim.metrics.reader_sheet.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.report_text import one_line
from medim.metrics.reader_questions import REAL, Question, check_questions
from medim.metrics.reader_sheet import Case, Key
from medim.pairs import encode_png
from medim.systems import Sample

TEMPLATE = Path(__file__).with_suffix(".html")
TITLE, CONTENT = "STUDY_TITLE", "STUDY_CONTENT"  # places in the template
ID_BYTES = 5
HASH_DIGITS = 16


@dataclass(frozen=True)
class StudyPair:
    """A pair that may be shown.

    Attributes:
        system: table row, or medim.metrics.reader_questions.REAL.
        dataset: what it shows, see `StudySettings.datasets`.
        image: (S, S, 3) uint8.
        report: without its prompt.
        match: see `medim.metrics.reader_sheet.Case`.
        origin: what the key keeps of it, as JSON.
        stated: see `medim.metrics.reader_sheet.Case`.
    """

    system: str
    dataset: str
    image: NDArray[np.uint8]
    report: str
    match: str
    origin: Mapping[str, Any]
    stated: Mapping[str, str] | None = None


@dataclass(frozen=True)
class StudySettings:
    """What a study shows and asks.

    Attributes:
        title: of the page; must not name a system.
        introduction: what a reader is told before he begins.
        questions: see medim.metrics.reader_questions.
        datasets: dataset -> how the page calls it ("chest x-ray").
        systems: those that are compared, as many pairs of each.
        pairs: of all systems together; the paper's 100.
        repeats: share of the pairs that each reader is shown a second time, in [0, 1/3].
        seed: of choice and ids.
    """

    title: str
    introduction: str
    questions: tuple[Question, ...]
    datasets: Mapping[str, str]
    systems: tuple[str, ...]
    pairs: int
    repeats: float
    seed: int

    def __post_init__(self) -> None:
        """Check the numbers and that nothing a reader sees names a system.

        Raises:
            ValueError: names the setting.
        """
        check_questions(self.questions, self.datasets)
        if len(set(self.systems)) != len(self.systems) or len(self.systems) < 2:
            raise ValueError(f"systems must be two or more different ones, got {self.systems}")
        if self.pairs < len(self.systems) or self.pairs % len(self.systems):
            raise ValueError(f"pairs must be a multiple of the {len(self.systems)} systems, got {self.pairs}")
        if not 0 <= self.repeats <= 1 / 3:
            raise ValueError(f"repeats must lie in [0, 1/3], got {self.repeats}: they are drawn from the first third")
        if not self.datasets:
            raise ValueError("datasets must name at least one dataset")

    @property
    def shown_again(self) -> int:
        """Pairs that each reader is shown a second time."""
        return min(round(self.repeats * self.pairs), self.pairs // 3)


@dataclass(frozen=True)
class Study:
    """A study that can be handed out: the page's HTML and the key that stays."""

    page: str
    key: Key


def sample_pair(sample: Sample, dataset: str, match: str, model: str) -> StudyPair:
    """A system's answer that is a whole pair, with its origin.

    Args:
        sample: of the task joint, or any with picture and report.
        dataset: what it turned into (a free sample says so only after it was read, `medim.evaluation.free_datasets`).
        match: see `Case`; "" for free samples.
        model: hash of what it comes from: the weights that made it, or the file of answers it stands in.

    Raises:
        ValueError: it lacks picture or report.
    """
    if sample.image is None or sample.report is None:
        raise ValueError(
            f"sample {sample.pair_id!r} of {sample.row} ({sample.task}) is no whole pair: take joint samples"
        )
    origin = {"model": model, "pair_id": sample.pair_id, "prompt": sample.prompt, "seed": sample.seed,
              "task": sample.task}  # fmt: skip
    return StudyPair(sample.row, dataset, sample.image, sample.report, match, origin)


def choose_pairs(pairs: Sequence[StudyPair], settings: StudySettings) -> list[StudyPair]:
    """As many pairs of each system, drawn without replacement; of its datasets as equal numbers as can be.

    The first datasets get one more where the number does not divide. A system that has too few pairs of one dataset
    (a free pair turns into what it will) shows more of the others. Pairs that have a match in all other systems are
    not preferred: hand in only those where the comparison is to be matched.

    Raises:
        ValueError: a system has too few pairs of all datasets together.
    """
    generator = np.random.default_rng([settings.seed, 0])
    each, chosen = settings.pairs // len(settings.systems), []
    for system in settings.systems:
        there = {name: [p for p in pairs if p.system == system and p.dataset == name] for name in settings.datasets}
        total = sum(map(len, there.values()))
        if total < each:
            raise ValueError(
                f"the study needs {each} pairs of {system} that show {', '.join(there)}, there are {total}: "
                f"run `dvc repro generate` with more joint samples, or lower pairs ({settings.pairs})"
            )
        wanted = shares(each, [len(found) for found in there.values()])
        for found, number in zip(there.values(), wanted, strict=True):
            chosen += [found[i] for i in sorted(generator.permutation(len(found))[:number].tolist())]
    return chosen


def shares(total: int, there: Sequence[int]) -> list[int]:
    """`total` over places that hold `there` at most, as evenly as can be; the first ones get what is over.

    Raises:
        ValueError: they hold fewer than `total` together.
    """
    if sum(there) < total:
        raise ValueError(f"{total} do not fit into places of {list(there)}")
    taken = [0] * len(there)
    while sum(taken) < total:
        place = min((i for i in range(len(there)) if taken[i] < there[i]), key=lambda i: (taken[i], i))
        taken[place] += 1
    return taken


def build_study(pairs: Sequence[StudyPair], settings: StudySettings) -> Study:
    """Page and key of the pairs that `choose_pairs` draws; the same input gives the same bytes.

    Raises:
        ValueError: see `choose_pairs`; or pictures of one dataset differ in size, which would tell systems apart.
    """
    chosen = choose_pairs(pairs, settings)
    _check_blind(chosen, settings)
    ids = _random_ids(len(chosen), settings.seed)
    items = sorted(zip(ids, chosen, strict=True), key=lambda item: item[0])
    content = {
        "title": settings.title,
        "introduction": settings.introduction,
        "datasets": dict(settings.datasets),
        "repeats": settings.shown_again,
        "questions": [asdict(question) for question in settings.questions],
        "items": [
            {"id": name, "dataset": pair.dataset, "report": one_line(pair.report), "image": _base64(pair.image)}
            for name, pair in items
        ],
    }
    study = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]
    cases = {name: Case(p.system, p.dataset, p.match, dict(p.origin), p.stated) for name, p in items}
    page = _page(settings.title, {"study": study, **content})
    return Study(page, Key(study, settings.questions, settings.shown_again, cases))


def write_study(study: Study, page: Path, key: Path) -> None:
    """Write the page for the readers and the key, which they must not get, to folders of their own.

    Raises:
        ValueError: both would lie in one folder, so that sending the folder would unblind the study.
    """
    if page.resolve().parent == key.resolve().parent:
        raise ValueError(f"page {page} and key {key} lie in one folder: keep the key apart from what readers get")
    for path, text in ((page, study.page), (key, study.key.dumps())):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def _check_blind(pairs: Sequence[StudyPair], settings: StudySettings) -> None:
    """Nothing but what a pair shows may tell its system."""
    for dataset in settings.datasets:
        sizes = sorted({pair.image.shape for pair in pairs if pair.dataset == dataset})
        if len(sizes) > 1:
            raise ValueError(f"pictures of {dataset} have sizes {sizes}: readers would tell the systems by them")
    shown = [settings.title, settings.introduction, *settings.datasets.values()]
    hidden = [system for system in settings.systems if system != REAL]
    named = sorted({system for system in hidden for text in shown if system.lower() in text.lower()})
    if named:
        raise ValueError(f"title, introduction or datasets of the study name {named}: readers must not know systems")


def _random_ids(number: int, seed: int) -> list[str]:
    generator = np.random.default_rng([seed, 1])
    ids: dict[str, None] = {}
    while len(ids) < number:
        ids[generator.bytes(ID_BYTES).hex()] = None
    return list(ids)


def _base64(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(encode_png(image)).decode("ascii")


def _page(title: str, content: Mapping[str, Any]) -> str:
    """The template with its content; "<" is escaped, so that no report can end the script that holds it."""
    text = TEMPLATE.read_text(encoding="utf-8")
    data = json.dumps(content, sort_keys=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    for place in (TITLE, CONTENT):
        if text.count(place) != 1:
            raise ValueError(f"{TEMPLATE} must hold {place} once, it holds it {text.count(place)} times")
    before, after = text.split(CONTENT)
    return before.replace(TITLE, html.escape(title)) + data + after.replace(TITLE, html.escape(title))
