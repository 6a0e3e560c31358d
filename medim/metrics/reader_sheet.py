"""Reads what a study of medim/reader_page.py gave back: the key that stayed here and one CSV sheet a reader.

Nothing is repaired and nothing left out: a sheet of another study, a case too few, an answer too few or one that the
question does not have is an error that names file and line. Shapes: N cases, R readers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.report_text import decode_text
from medim.metrics.reader_questions import Question, sheet_columns

Floats = NDArray[np.float64]
Row = tuple[int, Mapping[str, str]]  # line of the file, column -> text
Showing = tuple[str, int]  # case, pass (1, or 2 where it was shown again)

FORMAT = 1
PASSES = ("1", "2")
NAMED = 5  # cases that an error shows


@dataclass(frozen=True)
class Case:
    """Where a pair came from.

    Attributes:
        system: table row, or medim.metrics.reader_questions.REAL.
        dataset: of the pair.
        match: pairs of several systems with the same match answer the same prompt; "": none does.
        origin: seed, prompt, model: whatever is to be known of it afterwards.
        stated: what the report states, finding (without side) -> state, of a drawn dataset; of a real pair that is the
            truth. None: no grammar reads it.
    """

    system: str
    dataset: str
    match: str
    origin: Mapping[str, Any]
    stated: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Key:
    """The half of a study that readers must not see.

    Attributes:
        study: hash of what the readers see.
        questions: what they are asked.
        repeats: cases that each of them is shown a second time.
        cases: random id -> where the pair came from.
    """

    study: str
    questions: tuple[Question, ...]
    repeats: int
    cases: Mapping[str, Case]

    def dumps(self) -> str:
        """As JSON, the same bytes each time; `read_key` is the inverse."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Ratings:
    """All sheets of a study.

    Attributes:
        key: what the cases are.
        cases: N ids, sorted.
        readers: R names, sorted.
        first: question id -> (N, R) number of the chosen option from 0; NaN where the case's dataset is not asked.
        again: the same of the second showing; NaN where the reader was not shown the case again.
        seconds: (N, R) that the case of the first showing was looked at.
    """

    key: Key
    cases: tuple[str, ...]
    readers: tuple[str, ...]
    first: Mapping[str, Floats]
    again: Mapping[str, Floats]
    seconds: Floats

    def rows(self, system: str, dataset: str | None) -> NDArray[np.int64]:
        """Rows of a system's cases, of one dataset or (None) of all."""
        wanted = [self._is(case, system, dataset) for case in self.cases]
        return np.flatnonzero(wanted).astype(np.int64)

    def _is(self, case: str, system: str, dataset: str | None) -> bool:
        found = self.key.cases[case]
        return found.system == system and dataset in (None, found.dataset)

    @property
    def systems(self) -> tuple[str, ...]:
        """Systems in the study, sorted."""
        return tuple(sorted({case.system for case in self.key.cases.values()}))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets in the study, sorted."""
        return tuple(sorted({case.dataset for case in self.key.cases.values()}))


def read_key(path: Path) -> Key:
    """The key that `medim.reader_page.write_study` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it is the key that was written beside the page of the study")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, this version reads {FORMAT}")
        questions = tuple(
            Question(**{**one, "options": tuple(map(tuple, one["options"])), "datasets": tuple(one["datasets"])})
            for one in content["questions"]
        )
        cases = {case: Case(**found) for case, found in content["cases"].items()}
        return Key(content["study"], questions, int(content["repeats"]), cases)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no key of a reader study ({error}): take that of write_study") from error


def read_ratings(sheets: Sequence[Path], key: Key) -> Ratings:
    """All sheets of a study, one a reader.

    Raises:
        FileNotFoundError: a sheet is missing.
        ValueError: there is no sheet, two are of one reader, or one is not whole (see the top of this file).
    """
    if not sheets:
        raise ValueError(f"study {key.study} has no sheet: ask the readers for the CSV that their page exports")
    found: dict[str, tuple[Path, dict[Showing, Row]]] = {}
    for path in sheets:
        reader, rows = _read_sheet(path, key)
        if reader in found:
            raise ValueError(f"{path} and {found[reader][0]} are both of reader {reader!r}: keep the later one only")
        found[reader] = (path, rows)
    readers, cases = tuple(sorted(found)), tuple(sorted(key.cases))
    tables = [found[reader][1] for reader in readers]
    first, again = (
        {question.id: _chosen(question, cases, tables, number, key) for question in key.questions} for number in (1, 2)
    )
    seconds = np.array([[float(table[case, 1][1]["seconds"]) for table in tables] for case in cases])
    return Ratings(key, cases, readers, first, again, seconds)


def _chosen(
    question: Question, cases: Sequence[str], tables: Sequence[Mapping[Showing, Row]], number: int, key: Key
) -> Floats:
    """Options chosen at one showing, (N, R)."""
    values = np.full((len(cases), len(tables)), np.nan)
    for n, case in enumerate(cases):
        if not question.asked_of(key.cases[case].dataset):
            continue
        for r, table in enumerate(tables):
            if (case, number) in table:
                said = table[case, number][1][question.id]
                values[n, r] = question.values.index(said) if said else 0
    return values


def _read_sheet(path: Path, key: Key) -> tuple[str, dict[Showing, Row]]:
    """Reader and rows of one sheet, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it is the CSV that the page of study {key.study} exports")
    rows = list(_read_rows(path, sheet_columns(key.questions)))
    if not rows:
        raise ValueError(f"{path} has a header but no row: export it again from the page")
    readers = sorted({row["reader"] for _, row in rows})
    if len(readers) > 1 or not readers[0].strip():
        raise ValueError(f"{path} must be of one named reader, its column 'reader' holds {readers}")
    found: dict[Showing, Row] = {}
    for line, row in rows:
        showing = _showing(path, line, row, key)
        if showing in found:
            raise ValueError(f"{path}, line {line}: case {showing[0]}, pass {showing[1]} stands on line "
                             f"{found[showing][0]} too")  # fmt: skip
        found[showing] = (line, row)
    _check_complete(path, found, key)
    return readers[0], found


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Lines of a CSV file with exactly these columns, in any order."""
    text, _ = decode_text(path.read_bytes())
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, [])
        missing, extra = [c for c in columns if c not in header], [c for c in header if c not in columns]
        if missing or extra or len(set(header)) != len(header):
            hint = " (semicolons between the columns: was it saved by a spreadsheet?)" if ";" in "".join(header) else ""
            raise ValueError(
                f"{path}: missing columns {missing}, unknown or double ones {extra or sorted(header)}{hint}: take the "
                f"file as the page of the study exports it"
            )
        for fields in lines:
            if len(fields) != len(header):
                raise ValueError(f"{path}, line {lines.line_num}: {len(fields)} fields, the header has {len(header)}")
            yield lines.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num} is no CSV ({error}): export it again from the page") from error


def _showing(path: Path, line: int, row: Mapping[str, str], key: Key) -> Showing:
    """Case and pass of a row whose study, ids, answers and seconds are right."""
    where = f"{path}, line {line}"
    if row["study"] != key.study:
        raise ValueError(f"{where}: study {row['study']!r}, the key is of {key.study!r}: take the key of that page")
    if row["case"] not in key.cases:
        raise ValueError(f"{where}: case {row['case']!r} is not in study {key.study}")
    if row["pass"] not in PASSES:
        raise ValueError(f"{where}: pass {row['pass']!r} is not one of {PASSES}")
    for question in key.questions:
        said, asked = row[question.id], question.asked_of(key.cases[row["case"]].dataset)
        if said and (not asked or said not in question.values):
            raise ValueError(
                f"{where}: {question.id} is {said!r}, "
                + (f"must be one of {question.values}" if asked else "but is not asked of this case")
            )
    try:
        seconds = float(row["seconds"])
    except ValueError as error:
        raise ValueError(f"{where}: seconds is {row['seconds']!r}, no number") from error
    if not 0 <= seconds < np.inf:
        raise ValueError(f"{where}: seconds is {seconds}, must be finite and not negative")
    return row["case"], int(row["pass"])


def _check_complete(path: Path, found: Mapping[Showing, Row], key: Key) -> None:
    """Every case once, `repeats` of them twice, every required question answered."""
    missing = sorted(case for case in key.cases if (case, 1) not in found)
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} of {len(key.cases)} cases ({_some(missing)}): export it again "
                         f"from the page")  # fmt: skip
    again = sum(number == 2 for _, number in found)
    if again != key.repeats:
        raise ValueError(f"{path}: {again} cases were shown again, study {key.study} shows {key.repeats} again")
    for question in key.questions:
        blank = sorted(
            case
            for (case, _), (_, row) in found.items()
            if question.required and question.asked_of(key.cases[case].dataset) and not row[question.id]
        )
        if blank:
            raise ValueError(
                f"{path}: {len(blank)} of {len(found)} showings have no answer to {question.id!r} ({_some(blank)}): "
                f"let the reader open the page in the same browser again, it goes on where it was left"
            )


def _some(cases: Sequence[str]) -> str:
    return ", ".join(cases[:NAMED]) + (", ..." if len(cases) > NAMED else "")
