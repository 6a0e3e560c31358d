"""Reads the studies of IU-Xray and MIMIC-CXR from the files in which people have them; pictures are not opened here.

    annotation    R2Gen's annotation.json and its forks, of IU-Xray and MIMIC-CXR
    openi         the original report files ecgen-radiology/<n>.xml of Open-i, in a folder or a .tgz
    kaggle        indiana_reports.csv with indiana_projections.csv

A study is one report with one or more pictures. What cannot be used is quarantined with its reason, never dropped.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from medim.data.folder import SPLIT_NAMES, parse_json, read_table
from medim.data.report_text import decode_text, is_empty, one_line

Quarantine = list[tuple[str, str]]  # (item, reason)

GIVEN = "given"  # section of a report whose file does not say which it is
SECTIONS = {  # what params.yaml asks for -> the sections that are taken, and whether the first that is filled is enough
    "findings": (("findings",), True),
    "impression": (("impression",), True),
    "findings_or_impression": (("findings", "impression"), True),
    "both": (("findings", "impression"), False),
}
FRONTAL = {"frontal", "ap", "pa"}
LATERAL = {"lateral", "ll", "rl"}
MIMIC_PATH = re.compile(r"p\d{2}/p(\d{8})/s(\d{8})(?:/|$)")
IU_UID = re.compile(r"(?:CXR)?(\d+)(?:_|$)")


@dataclass(frozen=True)
class Study:
    """A report and its pictures. `views` are `frontal`, `lateral` or "" (not known), one a picture."""

    name: str  # id in the file
    study_id: str
    patient: str
    split: str  # train | val | test; "" = to be drawn
    report: str
    section: str  # findings | impression | findings+impression | given
    images: tuple[str, ...]  # files, relative to the picture folder
    views: tuple[str, ...]


@dataclass
class Read:
    """What was read: studies in the order of their file, and what was not usable."""

    studies: list[Study] = field(default_factory=list)
    quarantine: Quarantine = field(default_factory=list)


def read_annotation(path: Path, views: Mapping[str, str]) -> Read:
    """Studies of an annotation.json: {"train": […], "val": […], "test": […]}.

    Items: id, report, image_path (one name or a list), sometimes split, subject_id, study_id, view. A key of another
    spelling (`validate`, upper case, blanks around it) is understood; a blank key is the test split.

    Args:
        path: the file.
        views: see `read_views`; an item's own `view` comes first.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no such JSON; names the line or the key.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"annotation {path} is missing: set prepare_data.datasets.<name>.reports in params.yaml"
        )
    content = parse_json(path, decode_text(path.read_bytes())[0], 1)
    if not isinstance(content, dict) or not all(isinstance(items, list) for items in content.values()):
        raise ValueError(f"{path} must be an object that holds a list for each split, got {type(content).__name__}")
    read, seen = Read(), set[str]()
    for key, items in content.items():
        split = SPLIT_NAMES.get(key.strip().lower() or "test")
        if split is None:
            raise ValueError(f"{path} has the split {key!r}; expected {', '.join(sorted(SPLIT_NAMES))}")
        for number, item in enumerate(items, start=1):
            study = _annotated(item, split, views)
            if isinstance(study, str):
                read.quarantine.append((f"{key.strip() or 'test'} item {number}", study))
            elif study.name in seen:
                read.quarantine.append((study.name, "the id stands twice"))
            else:
                seen.add(study.name)
                read.studies.append(study)
    return read


def _annotated(item: Any, split: str, views: Mapping[str, str]) -> Study | str:
    """The study of one item of an annotation.json, or why there is none."""
    if not isinstance(item, dict) or not {"id", "report", "image_path"} <= set(item):
        return "no object with id, report and image_path"
    own = str(item.get("split", "")).strip().lower()
    if own and SPLIT_NAMES.get(own) != split:
        return f"stands under {split} and says {own!r}"
    name, paths = str(item["id"]).strip(), item["image_path"]
    listed = [str(path).strip() for path in ([paths] if isinstance(paths, str) else paths or [])]
    images = tuple(dict.fromkeys(image for image in listed if image))
    if not images:
        return f"{name}: names no picture"
    patient = patient_of(name, images, item.get("subject_id"))
    if not patient:
        return f"{name}: no patient in the id, the subject_id or the picture's path"
    named = {patient_of("", (image,), None) for image in images}
    others = {other for other in named if other[:1] == patient[:1]} - {patient}
    if others:
        return f"{name}: has pictures of another patient ({', '.join(sorted(others))})"
    said = item.get("view", "")
    own_views = [said] * len(images) if isinstance(said, str) else [*said, *([""] * len(images))]
    pairs = zip(images, own_views, strict=False)
    shown = [view_name(view) or views.get(picture_key(image), "") for image, view in pairs]
    mimic = MIMIC_PATH.search(images[0])
    study = f"s{item['study_id']}" if item.get("study_id") else f"s{mimic[2]}" if mimic else name
    return Study(name, study, patient, split, one_line(str(item["report"] or "")), GIVEN, images, tuple(shown))


def patient_of(study_id: str, images: Sequence[str], subject: object) -> str:
    """Patient of a study: MIMIC's subject ("p10000032") or IU's uid ("CXR12", one a patient); "" if there is none."""
    if subject not in (None, ""):
        return f"p{str(subject).strip().removeprefix('p')}"
    for image in images:
        found = MIMIC_PATH.search(image)
        if found:
            return f"p{found[1]}"
    first = images[0].rpartition("/")[2] if images else ""
    folder = images[0].partition("/")[0] if images and "/" in images[0] else ""
    for name in (study_id, folder, first):
        found = IU_UID.match(name)
        if found and (name.startswith("CXR") or name == study_id or "_IM-" in name):
            return f"CXR{found[1]}"
    return ""


def view_name(word: object) -> str:
    """frontal | lateral | "" of what a file calls a view (AP, PA, LL, Frontal, …)."""
    text = str(word or "").strip().lower()
    return "frontal" if text in FRONTAL else "lateral" if text in LATERAL else ""


def picture_key(name: str) -> str:
    """What two files of one picture share: "CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm.png" -> "1_im-0001-3001"."""
    stem = re.sub(r"(?:\.(?:dcm|png|jpe?g))+$", "", name.rpartition("/")[2], flags=re.IGNORECASE)
    return re.sub(r"^cxr(\d+)_(?:\1_)?", r"\1_", stem.lower())


def read_views(path: Path) -> dict[str, str]:
    """`picture_key` -> view of indiana_projections.csv (filename, projection) or of MIMIC-CXR's metadata CSV, also .gz.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has neither pair of columns.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"views {path} are missing: set prepare_data.datasets.<name>.views_table in params.yaml"
        )
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = csv.DictReader(io.StringIO(decode_text(data)[0], newline=""))
    columns = set(rows.fieldnames or ())
    for name, view in (("filename", "projection"), ("dicom_id", "ViewPosition")):
        if {name, view} <= columns:
            return {picture_key(row[name] or ""): view_name(row[view]) for row in rows}
    raise ValueError(f"{path} must have the columns filename and projection, or dicom_id and ViewPosition: {columns}")


def read_kaggle(path: Path, projections: Path, section: str) -> Read:
    """Studies of indiana_reports.csv, with their pictures from indiana_projections.csv.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError, KeyError: a table cannot be read or lacks a column.
    """
    pictures: dict[str, dict[str, str]] = {}
    for row in _rows(projections, ("uid", "filename", "projection")):
        pictures.setdefault(_text(row["uid"]), {})[_text(row["filename"])] = view_name(row["projection"])
    read, seen = Read(), set[str]()
    for number, row in enumerate(_rows(path, ("uid", "findings", "impression")), start=1):
        uid = _text(row["uid"])
        if not uid.isdigit() or None in row:
            reason = "more cells than the table has columns" if uid.isdigit() else f"no uid, got {uid!r}"
            read.quarantine.append((f"{path.name} row {number}", reason))
        else:
            texts = {name: row[name] for name in ("findings", "impression")}
            _take(read, seen, f"CXR{uid}", texts, pictures.get(uid, {}), section)
    return read


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    rows = read_table(path)[0]
    missing = [column for column in columns if rows and column not in rows[0]]
    if missing:
        raise KeyError(f"{path} has no column {missing[0]!r}; there are {sorted(map(str, rows[0]))}")
    return rows


def _text(cell: str | None) -> str:
    return (cell or "").strip()


def read_openi(path: Path, views: Mapping[str, str], section: str) -> Read:
    """Studies of Open-i's report files: every .xml of a folder (and those below it) or of a .tgz, by their number.

    Each file is read by itself: a report without a section has none. (A public script keeps its variables from file to
    file, so that such a report gets the section of the patient before.)

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it holds no .xml, or is no archive.
    """
    read, seen, files = Read(), set[str](), 0
    for name, data in sorted(_xml_files(path), key=lambda file: (_number(file[0]), file[0])):
        files += 1
        try:
            root = ElementTree.fromstring(data)
        except ElementTree.ParseError as error:
            read.quarantine.append((name, f"not XML ({error})"))
            continue
        uid = root.find("uId")
        label = uid.get("id", "").strip() if uid is not None else ""
        if not IU_UID.fullmatch(label):
            read.quarantine.append((name, f"the report's uId is {label!r}, expected CXR and a number"))
            continue
        texts = {part.get("Label", "").strip().lower(): "".join(part.itertext()) for part in root.iter("AbstractText")}
        stems = [part.get("id", "").strip() for part in root.iter("parentImage")]
        pictures = {f"{stem}.png": views.get(picture_key(stem), "") for stem in stems if stem}
        _take(read, seen, label, texts, pictures, section)
    if not files:
        raise ValueError(f"{path} holds no .xml file: expected Open-i's ecgen-radiology")
    return read


def _xml_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in path.rglob("*.xml"):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    if not path.is_file():
        raise FileNotFoundError(f"reports {path} are missing: set prepare_data.datasets.<name>.reports in params.yaml")
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
                if content is not None:
                    yield member.name, content.read()
    except tarfile.TarError as error:
        raise ValueError(f"{path} is neither a folder nor a tar archive ({error})") from error


def _number(name: str) -> int:
    found = re.search(r"(\d+)\.xml$", name)
    return int(found[1]) if found else -1


def _take(
    read: Read, seen: set[str], label: str, texts: Mapping[str, str | None], pictures: Mapping[str, str], section: str
) -> None:
    """Add one study of Open-i or Kaggle with its pictures (file -> view), or say why not."""
    report, taken = report_of(texts, section)
    if label in seen:
        reason = "the id stands twice"
    elif not report:
        reason = f"no {' or '.join(SECTIONS[section][0])}"
    else:
        reason = "" if pictures else "names no picture"
    seen.add(label)
    if reason:
        read.quarantine.append((label, reason))
    else:
        read.studies.append(
            Study(label, label, label, "", report, taken, tuple(pictures), tuple(pictures.values()))
        )  # fmt: skip


def report_of(texts: Mapping[str, str | None], section: str) -> tuple[str, str]:
    """(report, the sections it is made of) by the policy `section`; ("", "") where they are empty.

    Raises:
        ValueError: an unknown policy; names those there are.
    """
    if section not in SECTIONS:
        raise ValueError(f"section must be one of {', '.join(SECTIONS)}, got {section!r}")
    wanted, first_only = SECTIONS[section]
    filled = [(name, one_line(texts.get(name) or "")) for name in wanted]
    filled = [(name, text) for name, text in filled if not is_empty(text)][: 1 if first_only else None]
    return " ".join(text for _, text in filled), "+".join(name for name, _ in filled)
