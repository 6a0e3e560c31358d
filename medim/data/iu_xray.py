"""Imports IU-Xray and MIMIC-CXR in the layouts people have them in (medim/data/study_layouts.py) as pairs.

A pair holds one picture. A study with several gives one pair (`single`: the first frontal picture where views are
known, else the first one named), one pair a picture (`all`), or one pair a frontal picture (`frontal`); its pairs share
the study's id. The patient is read from the id or the path: IU's uid, MIMIC's subject. Nothing is dropped in silence:
missing and undecodable pictures, studies without a report or a picture and copied test reports stand in quarantine.csv.

IU-Xray's official test split holds 274 of its 590 reports word for word in train: the import counts such reports, and
`test_duplicates: drop` quarantines them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medim.data.folder import ImportStats, draw_splits, label_of
from medim.data.image_io import SUFFIXES, UnreadableImageError, read_picture
from medim.data.report_cleaning import CLEANINGS, clean_report
from medim.data.report_text import is_empty
from medim.data.splits import SPLITS
from medim.data.study_layouts import GIVEN, SECTIONS, Read, Study, read_annotation, read_kaggle, read_openi, read_views
from medim.pairs import PROMPT_END, Pair, encode_png

CHOICES = {
    "layout": ("annotation", "openi", "kaggle"),
    "views": ("single", "all", "frontal"),
    "section": (GIVEN, *SECTIONS),
    "cleaning": CLEANINGS,
    "test_duplicates": ("keep", "drop"),
    "overlap": ("refuse", "official"),
}
REDACTED = re.compile(r"\bX{4,}\b|_{3,}")  # Open-i's XXXX, MIMIC-CXR's ___


@dataclass(frozen=True)
class StudySource:
    """Where the studies are and how they become pairs; all of it stands in params.yaml."""

    root: str  # folder; every other path is relative to it
    layout: str  # annotation | openi | kaggle
    reports: str  # annotation.json; folder or .tgz of Open-i's .xml files; indiana_reports.csv
    views_table: str  # indiana_projections.csv, or MIMIC-CXR's metadata CSV (also .gz); "" = views are not known
    image_folder: str  # what the pictures' names are relative to; "" = root
    views: str  # single | all | frontal
    section: str  # given (annotation) | findings | impression | findings_or_impression | both
    cleaning: str  # plain | r2gen
    test_duplicates: str  # keep | drop: test reports that stand word for word in train
    overlap: str  # refuse | official: what happens when the official split has a patient in two splits
    prompt: str  # modality, e.g. "chest x-ray"
    background: str  # black | white | official
    fit: str  # pad | crop
    val: float  # share of patients; layouts without an official split
    test: float

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            ValueError: names the key, its value and what it may be.
        """
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if (self.layout == "annotation") != (self.section == GIVEN):
            raise ValueError(
                f"section is {GIVEN} for the layout annotation, whose reports are what they are, and one of "
                f"{', '.join(SECTIONS)} for the others; got layout {self.layout}, section {self.section}"
            )
        if self.layout == "kaggle" and not self.views_table:
            raise ValueError("the layout kaggle needs views_table: indiana_projections.csv names the pictures")
        if PROMPT_END in self.prompt:
            raise ValueError(f"a prompt may not hold {PROMPT_END!r}, which ends it, got {self.prompt!r}")
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise ValueError(f"val {self.val} and test {self.test} must not be negative, and their sum below 1")


@dataclass
class StudyStats(ImportStats):
    """What an import of studies did, beside what every import does."""

    sections: Counter[str] = field(default_factory=Counter)  # section -> pairs taken
    redacted: int = 0  # pairs taken whose report holds a redaction
    copied: dict[str, tuple[int, int]] = field(default_factory=dict)  # val, test -> reports that train has too, studies


def read_studies(dataset: str, source: StudySource) -> Read:
    """The studies of a source, with cleaned reports.

    Raises:
        FileNotFoundError: root or a file is missing.
        ValueError, KeyError: a file cannot be read; names it.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} is missing: set prepare_data.datasets.{dataset}.root in params.yaml")
    table = root / source.views_table if source.views_table else None
    if source.layout == "kaggle" and table is not None:
        read = read_kaggle(root / source.reports, table, source.section)
    else:
        views = {} if table is None else read_views(table)
        read = (
            read_annotation(root / source.reports, views)
            if source.layout == "annotation"
            else read_openi(root / source.reports, views, source.section)
        )
    usable = []
    for study in read.studies:
        if is_empty(study.report):
            read.quarantine.append((study.name, "the report is empty"))
        else:
            usable.append(replace(study, report=clean_report(study.report, source.cleaning)))
    return Read(usable, read.quarantine)


def text_key(report: str) -> str:
    """What two reports share that are the same word for word: lower-case words without punctuation."""
    return " ".join(re.findall(r"\w+", report.lower()))


def copied_reports(studies: Sequence[Study]) -> dict[str, tuple[int, int]]:
    """For val and test: (studies whose report stands word for word in train, all studies of the split)."""
    known = {text_key(study.report) for study in studies if study.split == "train"}
    found = {}
    for split in SPLITS[1:]:
        texts = [text_key(study.report) for study in studies if study.split == split]
        found[split] = (sum(text in known for text in texts), len(texts))
    return found


def shared_by_splits(studies: Sequence[Study]) -> dict[tuple[str, str], list[str]]:
    """Patients that stand in two splits: (split, split) -> patients; empty when none does."""
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for study in studies:
        patients[study.split].add(study.patient)
    pairs = [(first, second) for number, first in enumerate(SPLITS) for second in SPLITS[number + 1 :]]
    return {(a, b): sorted(patients[a] & patients[b]) for a, b in pairs if patients[a] & patients[b]}


def import_studies(
    dataset: str, source: StudySource, size: int, seed: int, write: Callable[[str, Pair], None],
    progress: Callable[[int], None],
) -> StudyStats:  # fmt: skip
    """Read the studies and hand every usable pair to `write(split, pair)`, one at a time, in the file's order.

    `Pair.source` is "<picture> (<section>)", the section where the layout names it.

    Raises:
        ValueError: nothing usable was found, a patient stands in two splits (unless `overlap: official`), or a file
            cannot be read.
        FileNotFoundError: root or a file is missing.
        KeyError: a table lacks a column.
    """
    read = read_studies(dataset, source)
    studies = _with_splits(dataset, source, read.studies, seed)
    stats = StudyStats(quarantined=list(read.quarantine), copied=copied_reports(studies))
    if source.test_duplicates == "drop":
        studies = _without_copies(studies, stats)
    seen: set[Path] = set()
    for number, study in enumerate(studies):
        for index, (label, pixels) in enumerate(_pictures(source, study, size, seen, stats)):
            pair_id = f"{dataset}-{number:06d}" + (f"-{index}" if source.views != "single" else "")
            shown = label if study.section == GIVEN else f"{label} ({study.section})"
            pair = Pair(pair_id, study.study_id, study.patient, dataset, shown, pixels, source.prompt, study.report)
            write(study.split, pair)
            stats.accepted[study.split] += 1
            stats.sections[study.section] += 1
            stats.redacted += REDACTED.search(study.report.upper()) is not None
        progress(number + 1)
    if not stats.accepted:
        first = stats.quarantined[:3]
        raise ValueError(f"{dataset}: {source.root} holds no usable pair (first rejected: {first})")
    _say(dataset, stats)
    return stats


def _with_splits(dataset: str, source: StudySource, studies: Sequence[Study], seed: int) -> list[Study]:
    """Studies with their split: the file's own, checked, or one drawn by patient."""
    if source.layout != "annotation":
        drawn = draw_splits({study.patient for study in studies}, source.val, source.test, seed)
        return [replace(study, split=drawn[study.patient]) for study in studies]
    for (first, second), patients in shared_by_splits(studies).items():
        message = f"{dataset}: {len(patients)} patients stand in both {first} and {second} (first: {patients[:3]})"
        if source.overlap == "refuse":
            place = f"params.yaml:prepare_data.datasets.{dataset}.overlap"
            raise ValueError(f"{message}. Set {place} to official to take this official split as it is")
        print(message, flush=True)
    return list(studies)


def _without_copies(studies: Sequence[Study], stats: StudyStats) -> list[Study]:
    known = {text_key(study.report) for study in studies if study.split == "train"}
    kept = []
    for study in studies:
        if study.split == "test" and text_key(study.report) in known:
            stats.quarantined.append((study.name, "the report stands word for word in train"))
        else:
            kept.append(study)
    return kept


def _pictures(
    source: StudySource, study: Study, size: int, seen: set[Path], stats: StudyStats
) -> Iterator[tuple[str, bytes]]:
    """(label, PNG) of the pictures that a study's pairs hold; what is not usable is quarantined."""
    root = Path(source.root)
    named = list(zip(study.images, study.views, strict=True))
    if source.views == "frontal" and not any(view == "frontal" for _, view in named):
        unknown = any(not view for _, view in named)
        reason = "no frontal picture" + (" is known: give views_table, or views: single" if unknown else "")
        stats.quarantined.append((study.name, reason))
        return
    if source.views == "frontal":
        named = [(image, view) for image, view in named if view == "frontal"]
    elif source.views == "single":
        named.sort(key=lambda picture: picture[1] != "frontal")  # stable: the file's order among equals
    for image, _ in named:
        path = find_picture(root / source.image_folder, image)
        label = label_of(path, root)
        if path in seen:
            stats.quarantined.append((label, "named twice"))
            continue
        seen.add(path)
        try:
            pixels = read_picture(path, size, source.background, source.fit)
        except UnreadableImageError as error:
            stats.quarantined.append((label, str(error)))
            continue
        yield label, encode_png(pixels)
        if source.views == "single":
            return


def find_picture(folder: Path, name: str) -> Path:
    """The file a study names, or the one of its name with another picture suffix (.JPG, .dcm); it may be missing."""
    path = folder / name
    if path.is_file():
        return path
    for suffix in SUFFIXES:
        for spelling in (suffix, suffix.upper()):
            other = path.with_suffix(spelling)
            if other.is_file():
                return other
    return path


def _say(dataset: str, stats: StudyStats) -> None:
    """Sections and redactions, empty splits, and how many reports of val and test train holds too."""
    sections = ", ".join(f"{count} {name}" for name, count in sorted(stats.sections.items()))
    print(f"{dataset}: sections: {sections}; {stats.redacted} pairs with redacted words", flush=True)
    for split in SPLITS:
        if not stats.accepted[split]:
            print(f"{dataset}: WARNING: the split {split} is empty", flush=True)
    for split, (copied, total) in stats.copied.items():
        if copied:
            share = 100 * copied / total
            print(
                f"{dataset}: {copied} of {total} {split} reports ({share:.0f} %) stand word for word in train",
                flush=True,
            )
