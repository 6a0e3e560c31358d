"""Imports your own pictures and reports: picture beside .txt, or a CSV, JSONL or JSON table.

Nothing is dropped in silence: each rejected item is a row of quarantine.csv with its reason, and `ImportStats` counts
them. Splits are by patient, drawn from the seed, unless the table names an official split.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medim.data.image_io import SUFFIXES, UnreadableImageError, read_picture
from medim.data.report_text import decode_report, is_empty, one_line
from medim.data.splits import SPLITS
from medim.pairs import Pair, encode_png

SPLIT_NAMES = {"train": "train", "val": "val", "validate": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class FolderSource:
    """Where a folder's pictures, reports and patients are; all of it stands in params.yaml."""

    root: str  # folder; every other path is relative to it
    table: str  # CSV, JSONL or JSON (list of objects) file; "" = each picture has a .txt of its name beside it
    image_column: str  # file, or folder whose pictures all get the row's report
    image_folder: str  # what image_column is relative to; "" = root
    report_column: str
    patient_column: str  # "" = each picture is a patient of its own
    patient_characters: int  # leading characters of it that name the patient (TCGA barcodes: 12); 0 = all
    split_column: str  # "" = split by patient at random; a column = the official split
    prompt: str  # modality, e.g. "chest x-ray"
    background: str  # black | white | official
    fit: str  # pad | crop
    val: float  # share of patients
    test: float  # share of patients


@dataclass(frozen=True)
class Item:
    """One picture with its report, before anything was decoded."""

    image: Path
    report: str
    patient: str
    split: str  # "" = to be drawn
    cp1252: bool = False


@dataclass
class ImportStats:
    """What an import did."""

    accepted: Counter[str] = field(default_factory=Counter)  # split -> pairs
    cp1252: int = 0  # reports that were not UTF-8
    quarantined: list[tuple[str, str]] = field(default_factory=list)  # (item, reason)

    def write_quarantine(self, path: Path) -> None:
        """quarantine.csv: item, reason."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["item", "reason"])
            writer.writerows(self.quarantined)


def read_items(source: FolderSource, stats: ImportStats) -> Iterator[Item]:
    """All items in a fixed order; rows that name nothing usable are quarantined in `stats`.

    Raises:
        FileNotFoundError: root or table is missing.
        KeyError: the table lacks a column; names those it has.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} is missing: set prepare_data.datasets.<name>.root in params.yaml")
    yield from _table_items(source, root, stats) if source.table else _neighbour_items(root, stats)


def _neighbour_items(root: Path, stats: ImportStats) -> Iterator[Item]:
    for image in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES):
        text = image.with_suffix(".txt")
        if not text.is_file():
            stats.quarantined.append((str(image.relative_to(root)), f"no report: {text.name} is missing"))
            continue
        report, cp1252 = decode_report(text.read_bytes())
        yield Item(image, report, image.relative_to(root).with_suffix("").as_posix(), "", cp1252)


def read_table(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Rows of a CSV, JSONL or JSON file, and whether it was read as cp1252.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: not a table of objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"table {path} is missing: set prepare_data.datasets.<name>.table in params.yaml")
    data = path.read_bytes()
    try:
        text, cp1252 = data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        text, cp1252 = data.decode("cp1252", errors="ignore"), True
    if path.suffix.lower() == ".csv":
        return list(csv.DictReader(text.splitlines(keepends=True))), cp1252
    rows = (
        json.loads(text) if path.suffix.lower() == ".json" else [json.loads(line) for line in text.splitlines() if line]
    )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects (CSV, JSONL, or JSON), got {type(rows).__name__}")
    return rows, cp1252


def _table_items(source: FolderSource, root: Path, stats: ImportStats) -> Iterator[Item]:
    path = root / source.table
    rows, cp1252 = read_table(path)
    wanted = (source.image_column, source.report_column, source.patient_column, source.split_column)
    for number, row in enumerate(rows):
        missing = [column for column in wanted if column and column not in row]
        if missing:
            raise KeyError(f"{path} row {number + 1} has no column {missing[0]!r}; there are {sorted(row)}")
        name = str(row[source.image_column] or "").strip()
        label = name or f"{source.table} row {number + 1}"
        image = root / source.image_folder / name
        pictures = sorted(p for p in image.rglob("*") if p.suffix.lower() in SUFFIXES) if image.is_dir() else [image]
        if not name or not pictures:
            stats.quarantined.append((label, "the row names no picture"))
            continue
        patient = str(row[source.patient_column]).strip() if source.patient_column else label
        split = str(row[source.split_column] or "").strip().lower() if source.split_column else ""
        if source.split_column and split not in SPLIT_NAMES:
            stats.quarantined.append((label, f"unknown split {split!r}"))
            continue
        report = one_line(str(row[source.report_column] or ""))
        for picture in pictures:
            yield Item(
                picture, report, patient[: source.patient_characters or None], SPLIT_NAMES.get(split, ""), cp1252
            )


def draw_splits(patients: set[str], val: float, test: float, seed: int) -> dict[str, str]:
    """Patient -> split: shares of `val` and `test`, at least one patient each where there are three or more."""
    order = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest())
    least = 1 if len(order) >= len(SPLITS) else 0
    n_test = max(least, round(test * len(order))) if test else 0
    n_val = max(least, round(val * len(order))) if val else 0
    names = ["test"] * n_test + ["val"] * n_val
    return {patient: names[i] if i < len(names) else "train" for i, patient in enumerate(order)}


def import_folder(
    dataset: str, source: FolderSource, size: int, seed: int, write: Callable[[str, Pair], None],
    progress: Callable[[int], None],
) -> ImportStats:  # fmt: skip
    """Read a folder and hand every usable pair to `write(split, pair)`, one at a time.

    Duplicate pictures (the same decoded pixels, same report) under two patients are kept and flagged by the patient
    check of the caller; a picture named twice is taken once.

    Raises:
        ValueError: nothing usable was found.
    """
    stats = ImportStats()
    items = list(read_items(source, stats))  # names and texts only; pictures are decoded one by one
    splits = draw_splits({item.patient for item in items}, source.val, source.test, seed)
    seen: set[Path] = set()
    for number, item in enumerate(items):
        label = _label(item.image, Path(source.root))
        reason = "named twice" if item.image in seen else "the report is empty" if is_empty(item.report) else ""
        seen.add(item.image)
        if not reason:
            try:
                pixels = read_picture(item.image, size, source.background, source.fit)
            except UnreadableImageError as error:
                reason = str(error)
        if reason:
            stats.quarantined.append((label, reason))
        else:
            split = item.split or splits[item.patient]
            pair_id = f"{dataset}-{number:06d}"
            pair = Pair(pair_id, pair_id, item.patient, dataset, label, encode_png(pixels), source.prompt, item.report)
            write(split, pair)
            stats.accepted[split] += 1
            stats.cp1252 += item.cp1252
        progress(number + 1)
    if not stats.accepted:
        first = stats.quarantined[:3]
        raise ValueError(f"{dataset}: {source.root} holds no usable pair ({len(items)} items; first rejected: {first})")
    return stats


def _label(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)


def source_of(settings: Mapping[str, Any]) -> FolderSource:
    """FolderSource of a section of params.yaml."""
    return FolderSource(**settings)
