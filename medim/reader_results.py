"""What readers said of generated pairs, as it stands in Figure 5a: cells of its rows, and the tables below it.

Sheets of readers lie in one folder, whatever study they are of: those of this world's key count, the others are named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medim.data.report_text import decode_text
from medim.evaluation import as_json
from medim.metrics.bootstrap import Estimate
from medim.metrics.estimate_text import estimate_text
from medim.metrics.reader_findings import SCORES, finding_agreement
from medim.metrics.reader_questions import REAL
from medim.metrics.reader_sheet import Key, read_key, read_ratings
from medim.metrics.reader_study import agreement, compare_systems, detection, system_scores
from medim.tables import PAIR_ROWS, READERS, Metrics

TASK = "joint"
NAMES = {REAL: "real pairs"}  # what a system is called in the tables, where it is not its row


@dataclass(frozen=True)
class ReaderRatings:
    """params.yaml:record_tables.reader_study.

    Attributes:
        ratings: folder of the sheets that came back; none of the study in it: its cells are not measured.
        resamples: bootstrap draws.
    """

    ratings: str
    resamples: int


@dataclass(frozen=True)
class ReaderResults:
    """Of one study.

    Attributes:
        metrics: model READERS -> as metrics/<model>.json: rows are systems (those that a table asks for and the study
            did not show have no score); {} where no reader has answered.
        details: what stands below the table, as JSON (`reader_tables` words it); {} likewise.
    """

    metrics: Metrics
    details: dict[str, Any]


def reader_results(source: ReaderRatings, key_file: Path, seed: int) -> ReaderResults:
    """Read the sheets of a study and compute its statistics.

    Args:
        source: folder and draws.
        key_file: what `medim.reader_page.write_study` kept apart.
        seed: of the bootstrap.

    Raises:
        FileNotFoundError: folder or key is missing.
        ValueError: a sheet of this study is not whole, see `read_ratings`.
    """
    folder, key = Path(source.ratings), read_key(key_file)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: params.yaml:record_tables.reader_study.ratings names a folder")
    sheets = sheets_of(folder, key)
    if not sheets:
        return ReaderResults({}, {})
    ratings = read_ratings(sheets, key)
    found = system_scores(ratings, TASK, seed, source.resamples)
    wanted = [source.row for row in PAIR_ROWS for source in row.sources if source.model == READERS]
    rows = {system: as_json(found.get(system, {})) for system in dict.fromkeys((*filter(None, wanted), *found))}
    details = {
        "study": key.study,
        "readers": len(ratings.readers),
        "differences": [asdict(one) for one in compare_systems(ratings, seed, source.resamples)],
        "detection": [asdict(one) for one in detection(ratings, seed, source.resamples)],
        "findings": [
            {"system": system, "dataset": dataset, **{name: list(one) for name, one in scores.items()}}
            for (system, dataset), scores in finding_agreement(ratings, seed, source.resamples).items()
        ],
        "agreement": {name: list(one) for name, one in agreement(ratings, seed, source.resamples).items()},
    }
    return ReaderResults({READERS: {"model": READERS, "rows": rows}}, details)


def sheets_of(folder: Path, key: Key) -> list[Path]:
    """The CSV files of a folder that are of this study, by name; others are named on the console.

    Raises:
        ValueError: a CSV file is no sheet of any study.
    """
    mine: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.glob("*.csv")):
        rows = list(csv.DictReader(io.StringIO(decode_text(path.read_bytes())[0], newline="")))
        if not rows or rows[0].get("study") is None:
            raise ValueError(f"{path} is no sheet of readers: it has no column 'study' or no row; take it out of there")
        (mine if any(row["study"] == key.study for row in rows) else others).append(path)
    if others:
        names = ", ".join(path.name for path in others)
        print(f"record_tables: {names} in {folder}: of another study than {key.study}: left out", flush=True)
    return mine


def reader_tables(details: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(heading, heads, rows as text) of all that readers said beyond cells; [] where no reader has answered."""
    if not details:
        return []
    differences = [
        [
            f"{one['question']}, {one['dataset']}: {_name(one['first'])} - {_name(one['second'])}",
            estimate_text(*one["difference"]), f"{one['p']:.3g}", f"{one['holm']:.3g}", one["test"],
            estimate_text(*one["odds"]), str(Estimate(*one["difference"]).n),
        ]
        for one in details["differences"]
    ]  # fmt: skip
    told = [
        [
            str(one["reader"]), estimate_text(*one["accuracy"]), "" if one["p"] is None else f"{one['p']:.3g}",
            estimate_text(*one["d_prime"]), str(Estimate(*one["accuracy"]).n),
        ]
        for one in details["detection"]
    ]  # fmt: skip
    seen = [
        [
            f"{_name(one['system'])}, {one['dataset']}", *(estimate_text(*one[name]) for name in SCORES),
            str(Estimate(*one["f1"]).n),
        ]
        for one in details["findings"]
    ]  # fmt: skip
    agreed = [[name, estimate_text(*one), str(Estimate(*one).n)] for name, one in details["agreement"].items()]
    tables = [
        (
            f"Differences between systems, as {details['readers']} readers see them (study {details['study']})",
            ["", "difference of means", "p", "p (Holm)", "test", "log odds ratio", "n"],
            differences,
        ),
        (
            "Readers who tell generated pairs from real ones",
            ["reader", "share right", "p against chance", "d'", "n"],
            told,
        ),
        (
            "Findings that readers see in pictures, against those that the reports state (of real pairs: the truth)",
            ["", *SCORES, "n"],
            seen,
        ),
        ("Agreement of readers, beyond chance", ["", "kappa", "n"], agreed),
    ]
    return [(heading, head, rows) for heading, head, rows in tables if rows]


def _name(system: str) -> str:
    return NAMES.get(system, system)
