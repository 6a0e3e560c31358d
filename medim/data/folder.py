"""Imports your own pictures and reports: picture beside .txt, or a CSV, JSONL or JSON table.

Nothing is dropped in silence: each rejected item is a row of quarantine.csv with its reason, and `ImportStats` counts
them. Splits are by patient, drawn from the seed, unless the table names an official split. Beside a .txt every file
is an item; a file of no known picture format without one is none. Pictures that no row of a table names are no items
either: `ImportStats.unnamed` lists them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medim.data.image_io import SUFFIXES, UnreadableImageError, read_picture
from medim.data.report_text import decode_report, decode_text, is_empty, one_line
from medim.data.splits import SPLITS
from medim.pairs import PROMPT_END, Pair, encode_png

SPLIT_NAMES = {"train": "train", "val": "val", "validate": "val", "validation": "val", "dev": "val", "test": "test"}
MAX_FIELD = 10_000_000  # characters of one CSV cell; more is taken for a quotation mark that nothing closes

Decoded = tuple[bytes | None, str]  # PNG and "", or None and the reason


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
    cp1252: int = 0  # reports that were read as cp1252
    quarantined: list[tuple[str, str]] = field(default_factory=list)  # (item, reason)
    unnamed: list[str] = field(default_factory=list)  # pictures below image_folder that no row names, relative to it

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
        ValueError: the table cannot be read; names the line.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} is missing: set prepare_data.datasets.<name>.root in params.yaml")
    yield from _table_items(source, root, stats) if source.table else _neighbour_items(root, stats)


def _neighbour_items(root: Path, stats: ImportStats) -> Iterator[Item]:
    files = sorted(p for p in root.rglob("*") if not p.is_dir())
    texts = {p.with_suffix(""): p for p in files if p.suffix.lower() == ".txt"}
    others = {p.with_suffix("") for p in files if p.suffix.lower() != ".txt"}
    for path in files:
        stem, suffix = path.with_suffix(""), path.suffix.lower()
        text = texts.get(stem, path.with_suffix(".txt"))  # .txt sorts behind .TXT, so it is the one taken
        if suffix in SUFFIXES and text.is_file():
            report, cp1252 = decode_report(text.read_bytes())
            yield Item(path, report, stem.relative_to(root).as_posix(), "", cp1252)
            continue
        if suffix in SUFFIXES:
            reason = f"no report: {text.name} is missing"
        elif suffix == ".txt":
            unused = "" if text == path else f"{text.name} is read instead"
            reason = unused if stem in others else "no picture beside it"
        else:
            reason = "not a known picture format" if stem in texts else ""
        if reason:
            stats.quarantined.append((path.relative_to(root).as_posix(), reason))


def read_table(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Rows of a CSV, JSONL or JSON file, and whether it was read as cp1252.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: not a table of objects; names the line that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"table {path} is missing: set prepare_data.datasets.<name>.table in params.yaml")
    text, cp1252 = decode_text(path.read_bytes())
    if path.suffix.lower() == ".csv":
        return _csv_rows(path, text), cp1252
    if path.suffix.lower() == ".json":
        rows = parse_json(path, text, 1)
    else:
        lines = enumerate(text.split("\n"), 1)  # splitlines would cut at U+2028 and U+0085 inside a string
        rows = [parse_json(path, line, number) for number, line in lines if line.strip()]
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of objects (CSV, JSONL, or JSON), got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} row {number} must be an object, got {type(row).__name__}")
    return rows, cp1252


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        return list(reader)
    except csv.Error as error:
        line = reader.line_num + 1  # line_num is the end of the last good row
        raise ValueError(f"{path} line {line}: the row that begins here cannot be read ({error})") from error
    finally:
        csv.field_size_limit(limit)


def parse_json(path: Path, text: str, first_line: int) -> Any:
    """Content of JSON text whose first line is line `first_line` of `path`.

    Raises:
        ValueError: names file, line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path} line {line} column {error.colno}: not JSON ({error.msg})") from error


def _cell(row: Mapping[str, Any], column: str) -> str:
    """The cell's text; "" where it is null or NaN."""
    value = row[column]
    return "" if value is None or value != value else str(value).strip()


def _table_items(source: FolderSource, root: Path, stats: ImportStats) -> Iterator[Item]:
    path = root / source.table
    rows, cp1252 = read_table(path)
    folder, named = root / source.image_folder, set[str]()
    wanted = (source.image_column, source.report_column, source.patient_column, source.split_column)
    for number, row in enumerate(rows):
        missing = [column for column in wanted if column and column not in row]
        if missing:
            raise KeyError(f"{path} row {number + 1} has no column {missing[0]!r}; there are {sorted(map(str, row))}")
        name = _cell(row, source.image_column)
        image = folder / name
        label = label_of(image, root) if name else f"{source.table} row {number + 1}"
        pictures = sorted(p for p in image.rglob("*") if p.suffix.lower() in SUFFIXES) if image.is_dir() else [image]
        if not name or not pictures:
            stats.quarantined.append((label, "the row names no picture"))
            continue
        named.update(os.path.realpath(picture) for picture in pictures if picture.exists())
        if None in row:  # where csv.DictReader puts them
            stats.quarantined.append((label, "more cells than the table has columns: an unquoted comma?"))
            continue
        patient = _cell(row, source.patient_column) if source.patient_column else name
        if not patient:
            stats.quarantined.append((label, "no patient"))
            continue
        split = _cell(row, source.split_column).lower() if source.split_column else ""
        if source.split_column and split not in SPLIT_NAMES:
            stats.quarantined.append((label, f"unknown split {split!r}"))
            continue
        report = one_line(_cell(row, source.report_column))
        for picture in pictures:
            yield Item(
                picture, report, patient[: source.patient_characters or None], SPLIT_NAMES.get(split, ""), cp1252
            )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    stats.unnamed += [p.relative_to(folder).as_posix() for p in files if os.path.realpath(p) not in named]


def draw_splits(patients: set[str], val: float, test: float, seed: int) -> dict[str, str]:
    """Patient -> split: shares of `val` and `test`, at least one patient each where there are three or more."""
    order = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest())
    least = 1 if len(order) >= len(SPLITS) else 0
    n_test = max(least, round(test * len(order))) if test else 0
    n_val = max(least, round(val * len(order))) if val else 0
    names = ["test"] * n_test + ["val"] * n_val
    return {patient: names[i] if i < len(names) else "train" for i, patient in enumerate(order)}


def _check_source(dataset: str, source: FolderSource) -> None:
    place = f"params.yaml:prepare_data.datasets.{dataset}"
    if PROMPT_END in source.prompt:
        raise ValueError(
            f"{dataset}: a prompt may not hold {PROMPT_END!r}, which ends it, got {source.prompt!r}: "
            f"change {place}.prompt"
        )
    val, test = source.val, source.test
    if not source.split_column and not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(
            f"{dataset}: the shares val {val} and test {test} must not be negative, and their sum must be below 1: "
            f"change {place}.val and .test"
        )


def _empty_splits(dataset: str, source: FolderSource, filled: Collection[str]) -> list[str]:
    """One message for val and for test where its share is above 0 and nothing fills it; an empty train is an error."""
    why = f"is empty (val {source.val}, test {source.test} of the patients)"
    place = f"params.yaml:prepare_data.datasets.{dataset}"
    if "train" not in filled:
        raise ValueError(f"{dataset}: the split train {why}: lower {place}.val or .test, or add patients")
    asked = {"val": source.val, "test": source.test}
    return [
        f"{dataset}: WARNING: the split {split} {why}: raise {place}.{split}, or add patients"
        for split, share in asked.items()
        if share > 0 and split not in filled
    ]


def _unnamed(dataset: str, source: FolderSource, names: list[str]) -> str:
    many = "1 picture" if len(names) == 1 else f"{len(names)} pictures"
    where = f"under {Path(source.root) / source.image_folder} {'is' if len(names) == 1 else 'are'} named by no row"
    return f"{dataset}: {many} {where} of {source.table} (first: {', '.join(names[:3])})"


def checked_items(dataset: str, source: FolderSource, stats: ImportStats) -> list[Item]:
    """All items, names and texts only.

    Raises:
        ValueError, FileNotFoundError, KeyError: see `import_folder`.
    """
    _check_source(dataset, source)
    return list(read_items(source, stats))


def split_of_patients(dataset: str, source: FolderSource, items: Sequence[Item], seed: int) -> dict[str, str]:
    """Patient -> split.

    Raises:
        ValueError: no patient is left for train; said before hours of decoding.
    """
    splits = draw_splits({item.patient for item in items}, source.val, source.test, seed)
    if splits and not source.split_column:
        _empty_splits(dataset, source, set(splits.values()))
    return splits


def refusals(items: Sequence[Item]) -> list[str]:
    """Why an item is not taken, whatever its picture is; "" where only the picture decides."""
    seen: set[Path] = set()
    reasons = []
    for item in items:
        reasons.append("named twice" if item.image in seen else "the report is empty" if is_empty(item.report) else "")
        seen.add(item.image)
    return reasons


def decode_picture(path: Path, size: int, background: str, fit: str) -> Decoded:
    """A file as PNG, or why it cannot be used; see `read_picture`."""
    try:
        return encode_png(read_picture(path, size, background, fit)), ""
    except UnreadableImageError as error:
        return None, str(error)


def _next(pictures: Iterator[Decoded], dataset: str, label: str) -> Decoded:
    for picture in pictures:
        return picture
    raise ValueError(f"{dataset}: {label} was not decoded: the source changed while it was read, start again")


def import_folder(
    dataset: str, source: FolderSource, size: int, seed: int, write: Callable[[str, Pair], None],
    progress: Callable[[int], None], pictures: Iterator[Decoded] | None = None,
) -> ImportStats:  # fmt: skip
    """Read a folder and hand every usable pair to `write(split, pair)`, one at a time.

    A file named twice is taken once. Pixels are not compared: copies of a picture in two files are both taken, also
    under two patients.

    Args:
        pictures: what `decode_picture` says of each item that `refusals` lets pass, in order, where others have decoded
            them (medim.data.preparation_shards); None: they are decoded here.

    Raises:
        ValueError: nothing usable was found, shares or prompt cannot be used, no patient is left for train, the table
            cannot be read, or `pictures` are fewer than items.
        FileNotFoundError: root or table is missing.
        KeyError: the table lacks a column.
    """
    stats = ImportStats()
    items = checked_items(dataset, source, stats)
    if stats.unnamed:
        print(_unnamed(dataset, source, stats.unnamed), flush=True)
    splits = split_of_patients(dataset, source, items, seed)
    reasons = refusals(items)
    wanted = (item for item, reason in zip(items, reasons, strict=True) if not reason)
    pictures = pictures or (decode_picture(item.image, size, source.background, source.fit) for item in wanted)
    for number, (item, reason) in enumerate(zip(items, reasons, strict=True)):
        label = label_of(item.image, Path(source.root))
        png, reason = (None, reason) if reason else _next(pictures, dataset, label)
        if png is None:
            stats.quarantined.append((label, reason))
        else:
            split = item.split or splits[item.patient]
            pair_id = f"{dataset}-{number:06d}"
            pair = Pair(pair_id, pair_id, item.patient, dataset, label, png, source.prompt, item.report)
            write(split, pair)
            stats.accepted[split] += 1
            stats.cp1252 += item.cp1252
        progress(number + 1)
    if not stats.accepted:
        first = stats.quarantined[:3]
        raise ValueError(f"{dataset}: {source.root} holds no usable pair ({len(items)} items; first rejected: {first})")
    if not source.split_column:
        for message in _empty_splits(dataset, source, stats.accepted):
            print(message, flush=True)
    return stats


def label_of(image: Path, root: Path) -> str:
    """A picture's path below `root`, or the whole path where it lies elsewhere."""
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)


def source_of(settings: Mapping[str, Any]) -> FolderSource:
    """FolderSource of a section of params.yaml."""
    return FolderSource(**settings)
