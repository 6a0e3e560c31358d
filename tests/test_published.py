"""The published numbers are those of the published predictions."""

import json
from pathlib import Path

import pytest

from medim.data import get_domain, is_drawn
from medim.data.domain import labels_of
from medim.metrics.findings import finding_scores
from medim.metrics.report_text import nltk_bleu, nltk_rouge

RESULTS = Path(__file__).parents[1] / "docs/results"
FILES = sorted(p for p in RESULTS.glob("*/reports/*/*.jsonl") if p.parent.name != "references")


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
        texts = [said[i] for i in ids], [true[i]["report"] for i in ids]
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


def test_every_table_cell_comes_from_a_published_row_or_says_nothing():
    for path in RESULTS.glob("*/tables/*.json"):
        for cell in json.loads(path.read_text())["cells"]:
            assert (cell["value"] is None) or cell["n"] > 0, (path, cell)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("phantom/rows/finding_reader.json")))
def test_the_published_reader_passes_its_gate(path):
    row = json.loads(path.read_text())
    assert row["held_out"] >= 1000
    assert min(row["phantom_cxr/f1"], row["phantom_pathology/f1"]) >= 0.95
