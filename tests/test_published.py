"""The published numbers are those of the published predictions."""

import json
import re
from pathlib import Path
from statistics import fmean as mean

import pytest

from medim.data import get_domain, is_drawn
from medim.data.domain import labels_of
from medim.further_rows import with_further_rows
from medim.metrics.findings import finding_scores
from medim.metrics.report_text import nltk_bleu, nltk_rouge, paired
from medim.table_render import NOT_MEASURED
from medim.tables import TABLES, Column, Row, Source, phantom_world

RESULTS = Path(__file__).parents[1] / "docs/results"
FILES = sorted(p for p in RESULTS.glob("*/reports/*/*.jsonl") if p.parent.name != "references")
TABLE_FILES = sorted(RESULTS.glob("*/tables/*.json"))
READERS = sorted(RESULTS.glob("phantom/rows/finding_reader.json"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parts[-4]}-{p.parts[-2]}-{p.stem}")
def test_scores_recomputed_from_the_published_reports_are_the_published_ones(path):
    world, model, dataset = path.parents[2], path.parent.name, path.stem
    true = {row["pair_id"]: row for row in lines(world / "reports/references" / path.name)}
    published = json.loads((world / "rows" / f"{model}.json").read_text())["rows"]
    for row, scores in published.items():
        said = {one["pair_id"]: one["report"] for one in lines(path) if one["row"] == row}
        ids = sorted(said)
        texts = paired({i: said[i] for i in ids}, {i: true[i]["report"] for i in ids})  # one line each, as scored
        measured = {f"BLEU-{n + 1} (nltk)": v for n, v in enumerate(nltk_bleu(*texts).mean(axis=0))}
        measured["ROUGE-L (nltk)"] = nltk_rouge(*texts).mean()
        if is_drawn(dataset):
            domain = get_domain(dataset)
            truth = [json.loads(true[i]["findings"]) for i in ids]
            read = [domain.grammar.read(said[i]) for i in ids]
            found = finding_scores(truth, read, labels_of(domain.findings), 0, 2)
            measured |= {name: found[name].value for name in ("finding_precision", "finding_recall", "finding_f1")}
        for name, value in measured.items():
            entry = scores[f"{dataset}/image_to_report/{name}"]
            assert entry["value"] == pytest.approx(value, abs=1e-9), (row, name)
            assert entry["n"] == len(ids)


def published_rows(world: Path) -> dict[str, dict]:
    """Model -> row name -> metric key -> entry, of the row files of a world."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (world / "rows").glob("*.json")}
    return {model: file["rows"] for model, file in files.items() if "rows" in file}


def entry_value(source: Source, key: str, rows: dict[str, dict]) -> tuple[bool, float | None]:
    """(published, value) of a key in the row file that a source names; the mean where several seeds are published."""
    stored = source.stored_key(key)
    seeds = [name for name in rows if re.fullmatch(re.escape(source.model) + r"(_(seed)?\d+)?", name)]
    lines = [rows[name].get(source.row or next(iter(rows[name])), {}) for name in seeds]
    values = [line[stored]["value"] for line in lines if stored in line]
    return bool(values), None if None in values or not values else mean(values)


def row_value(row: Row, column: Column, rows: dict[str, dict]) -> float | None:
    """The number of the first source that published every key of a column; None where none did."""
    for source in row.sources:
        found = [entry_value(source, key, rows) for key in column.keys]
        if all(published for published, _ in found):
            values = [value for _, value in found]
            return None if None in values else mean(values)
    return None


@pytest.mark.parametrize("path", TABLE_FILES, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_every_table_cell_comes_from_a_published_row_or_says_nothing(path):
    content, rows = json.loads(path.read_text(encoding="utf-8")), published_rows(path.parents[1])
    world = phantom_world(content["profile"])
    table = next(table for table in TABLES if table.id == content["id"])
    table = with_further_rows(table, {name: {"rows": page} for name, page in rows.items()}, sorted(rows), world)
    names = {row.name: row for row in table.rows}
    columns = {column.name: column for column in table.columns(world)}
    for cell in content["cells"]:
        row, column = names[cell["row"]], columns[cell["column"]]
        if row.gain is None:
            expected = row_value(row, column, rows)
        else:
            of, over = (row_value(names[name], column, rows) for name in row.gain)
            expected = 100 * (of / over - 1) if of is not None and over else None
        assert cell["value"] == (None if expected is None else pytest.approx(expected, rel=1e-12, abs=1e-12)), cell
        assert expected is None or cell["n"] > 0, cell
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    said = [text.strip() for line in page.splitlines() for text in line.split("|")].count(NOT_MEASURED)
    holes = sum(cell["value"] is None for cell in content["cells"])
    for goal in content.get("goals", []):
        holes += (goal["value"] is None) + (goal["reached"] == NOT_MEASURED)
        holes += sum(value is None for value in goal["trivial"].values())
    assert said == holes


def test_the_check_of_cells_finds_a_number_that_no_row_holds():
    rows = {"medim": {"MeDiM": {"a/t/m": {"value": 1.0}, "b/t/m": {"value": 3.0}, "c/t/m": {"value": None}}}}
    row = Row("MeDiM", (Source("medim", "MeDiM"),))

    def value(*keys):
        return row_value(row, Column("x", "m", keys, None, "higher"), rows)

    assert (value("a/t/m"), value("a/t/m", "b/t/m")) == (1.0, 2.0)
    assert (value("c/t/m"), value("a/t/m", "c/t/m"), value("d/t/m")) == (None, None, None)
    assert row_value(Row("other", (Source("other"),)), Column("x", "m", ("a/t/m",), None, "higher"), rows) is None


def test_there_is_something_published():
    """pytest passes a parametrised test that has no parameter."""
    assert FILES and READERS
    published = {path.stem for path in TABLE_FILES if "phantom" in path.parts}
    rows = published_rows(RESULTS / "phantom").keys()
    assert published <= {table.id for table in TABLES}
    assert {table.id for table in TABLES if not rows.isdisjoint(table.models)} <= published


@pytest.mark.parametrize("path", READERS)
def test_the_published_reader_passes_its_gate(path):
    row = json.loads(path.read_text())
    assert row["held_out"] >= 1000
    assert min(row["phantom_cxr/f1"], row["phantom_pathology/f1"]) >= 0.95
