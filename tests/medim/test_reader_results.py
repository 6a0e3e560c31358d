"""From free pairs to a page, from the page to ratings of simulated readers, from those to the cells of Figure 5a."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from certain_reader import certain_reader

from medim.data.splits import drawn_pairs
from medim.evaluation import Reference
from medim.metrics.reader_questions import AGREEMENT, ARTEFACT, ERRORS, GENERATED, ORIGIN, REAL, REALISM
from medim.metrics.reader_sheet import read_key
from medim.pairs import write_pairs
from medim.reader_page import write_study
from medim.reader_preparation import Answers, ReaderStudy, asked, prepare_study, real_pairs, shown
from medim.reader_results import ReaderRatings, reader_results, reader_tables, sheets_of
from medim.systems import Sample
from medim.table_cells import build_table
from medim.table_render import render_all
from medim.tables import get_table, phantom_world

sys.path.append(str(Path(__file__).with_name("metrics")))

from simulated_readers import write_sheet

WORDS = {"phantom_cxr": "chest x-ray", "phantom_pathology": "histology"}
STARTS = {"phantom_cxr": "chest x-ray", "phantom_pathology": "histology"}  # of the prompts that systems write
SPEC = ReaderStudy(
    datasets=WORDS, questions=("agreement", "realism", "origin", "errors", "artefact"), pairs=24, repeats=0.25,
    title="Pairs", introduction="Please rate.",
)  # fmt: skip
WORLD = phantom_world("phantom")
GOOD = {"MeDiM": 4, "UniDisc": 2, REAL: 5}  # what readers think of a system's agreement


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("pairs"), {}
    for name in WORDS:
        for split, count in (("train", 4), ("test", 12)):
            write_pairs(folder / name / f"{split}.parquet", drawn_pairs(name, split, 0, count, 32))
        found[name] = Reference(name, folder / name / "test.parquet", folder / name / "train.parquet", certain_reader())
        STARTS[name] = found[name].train[0].prompt.split(",")[0].split(" of ")[0]
    return found


def free(row: str, each: int) -> Answers:
    rng = np.random.default_rng(len(row))
    samples = [
        Sample(row, "joint", "all", f"{name}-{i}", i, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), start,
               f"Report {i} of {start}.", 3)
        for name, start in STARTS.items() for i in range(each)
    ]  # fmt: skip
    return Answers(samples, f"file of {row}")


def prepared(tmp_path, references, models, seed=0):
    answers = {"medim": free("MeDiM", 8), "unidisc": free("UniDisc", 8)}
    study = prepare_study(models, SPEC, answers, references, seed)
    page, key = tmp_path / "reader_study" / "page.html", tmp_path / "reader_key.json"
    write_study(study, page, key)
    return study, key


def answer_as(key, reader):
    """Agreement as in GOOD, one lower by the second reader; all but UniDisc pass for real; MeDiM swaps a side."""

    def answer(case, _number):
        system = key.cases[case].system
        wrong = {ERRORS[2].id: "significant"} if system == "MeDiM" else {}
        return {AGREEMENT.id: str(GOOD[system] - reader), REALISM.id: "3", ARTEFACT.id: "blur",
                ORIGIN.id: GENERATED if system == "UniDisc" else REAL, **wrong}  # fmt: skip

    return answer


def rated(tmp_path, references, models):
    """Results of two readers, whose sheets go through the files."""
    study, key_file = prepared(tmp_path, references, models)
    key = read_key(key_file)
    assert key == study.key
    folder = tmp_path / "ratings"
    folder.mkdir()
    for reader in range(2):
        again = list(key.cases)[: key.repeats]
        write_sheet(folder / f"{reader}.csv", key, f"r{reader}", answer_as(key, reader), again)
    return reader_results(ReaderRatings(str(folder), 50), key_file, 0), key, folder


def cell(built, row, column):
    (found,) = [one for one in built["cells"] if (one["row"], one["column"]) == (row, column)]
    return found


def test_as_many_of_each_system_in_one_blinded_page(tmp_path, references):
    study, _ = prepared(tmp_path, references, ("medim", "unidisc"))
    count = {(c.system, c.dataset): 0 for c in study.key.cases.values()}
    for case in study.key.cases.values():
        count[case.system, case.dataset] += 1
        assert case.origin["model"] == f"file of {case.system}"
    assert count == {(system, name): 6 for system in ("MeDiM", "UniDisc") for name in WORDS}
    assert "6 of MeDiM that show phantom_cxr" in shown(study)
    assert not [name for name in ("MeDiM", "UniDisc", "file of") if name in study.page]
    assert [path.name for path in (tmp_path / "reader_study").iterdir()] == ["page.html"]


def test_from_page_to_cells(tmp_path, references):
    results, key, folder = rated(tmp_path, references, ("medim", "unidisc"))
    built = build_table(get_table("figure5a"), results.metrics, WORLD)
    for row, agreement, real, swapped in (("MeDiM", 3.5, 1, 1), ("UniDisc", 1.5, 0, 0)):
        for name in WORDS:
            found = cell(built, row, f"{name}/human agreement")
            assert (found["value"], found["n"], found["better"]) == (agreement, 6, "higher")
            assert found["low"] == agreement - 0.5 and found["high"] == agreement + 0.5  # readers are drawn too
            assert cell(built, row, f"{name}/human origin (real)")["value"] == real
            wrong = cell(built, row, f"{name}/human error: wrong side or site (significant)")
            assert (wrong["value"], wrong["better"]) == (swapped, "lower")
            assert cell(built, row, f"{name}/human artefact (none)")["value"] == 0
            assert cell(built, row, f"{name}/alignment (phantom judge)")["value"] is None
    assert cell(built, "real pairs", "phantom_cxr/human agreement")["value"] is None
    built["readers"] = results.details
    pages = render_all(json.loads(json.dumps(built)))
    assert "agreement, all: MeDiM - UniDisc | 2.000 (2.000–2.000)" in pages[".md"]
    assert "agreement/cohen\\_kappa" in pages[".md"] and "Agreement of readers, beyond chance" in pages[".html"]
    assert all(one["holm"] >= one["p"] for one in results.details["differences"])
    (folder / "1.csv").unlink()
    (folder / "0.csv").write_text((folder / "0.csv").read_text().replace(key.study, "f" * 16))
    assert sheets_of(folder, key) == []


def test_the_key_says_what_reports_state_and_the_tables_what_readers_see(tmp_path, references):
    """Readers who see exactly what real reports state, and nothing in generated pictures."""
    spec = replace(SPEC, questions=("agreement", "findings"), pairs=12)
    study = prepare_study((REAL, "medim"), spec, {"medim": free("MeDiM", 8)}, references, 0)
    key, folder = study.key, tmp_path / "ratings"
    write_study(study, tmp_path / "send" / "page.html", tmp_path / "key.json")
    assert read_key(tmp_path / "key.json") == key
    stated = [case.stated for case in key.cases.values() if case.system == REAL]
    assert any(stated)

    def answer(case, _number):
        one = key.cases[case]
        asked_of = [question.id for question in key.questions if question.asked_of(one.dataset)]
        seen = {f"finding: {name}" for name, state in one.stated.items() if state == "present"}
        shows = seen if one.system == REAL else set()
        said = {name: "present" if name in shows else "absent" for name in asked_of if name.startswith("finding")}
        return {AGREEMENT.id: "3", **said}

    folder.mkdir()
    write_sheet(folder / "0.csv", key, "r", answer, list(key.cases)[: key.repeats])
    found = reader_results(ReaderRatings(str(folder), 50), tmp_path / "key.json", 0).details["findings"]
    scores = {(one["system"], one["dataset"]): (one["recall"][0], one["precision"][0]) for one in found}
    assert {scores[REAL, name] for name in WORDS} == {(1.0, 1.0)}
    assert scores["MeDiM", "phantom_cxr"] == (None, None)  # its reports state nothing, and nothing is seen
    page = reader_tables(reader_results(ReaderRatings(str(folder), 50), tmp_path / "key.json", 0).details)
    (rows,) = [rows for heading, _, rows in page if heading.startswith("Findings that readers see")]
    assert rows[2][:2] == ["real pairs, phantom_cxr", "1.000 (1.000–1.000)"]


def test_real_pairs_are_a_row_and_readers_tell_them_apart(tmp_path, references):
    results, _, _ = rated(tmp_path, references, ("unidisc", REAL))
    built = build_table(get_table("figure5a"), results.metrics, WORLD)
    assert cell(built, "real pairs", "phantom_pathology/human agreement")["value"] == 4.5
    assert cell(built, "MeDiM", "phantom_pathology/human agreement")["value"] is None
    assert not [one for one in built["cells"] if one["row"] == "real pairs" and "human" not in one["column"]]
    assert [one["accuracy"][0] for one in results.details["detection"]] == [1, 1, 1]
    built["readers"] = results.details
    assert "UniDisc - real pairs" in render_all(built)[".md"]


def test_without_sheets_nothing_is_measured(tmp_path, references, capsys):
    _, key = prepared(tmp_path, references, ("medim", "unidisc"))
    (tmp_path / "ratings").mkdir()
    source = ReaderRatings(str(tmp_path / "ratings"), 50)
    results = reader_results(source, key, 0)
    assert results.metrics == {} == results.details
    built = build_table(get_table("figure5a"), results.metrics, WORLD) | {"readers": results.details}
    assert {one["value"] for one in built["cells"]} == {None}
    assert "Readers" not in render_all(built)[".html"]
    _, other = prepared(tmp_path / "other", references, ("medim", "unidisc"), seed=1)
    write_sheet(tmp_path / "ratings" / "r.csv", read_key(other), "r", answer_as(read_key(other), 0))
    assert reader_results(source, key, 0).metrics == {}
    assert "r.csv" in capsys.readouterr().out
    (tmp_path / "ratings" / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"notes.csv is no sheet of readers"):
        reader_results(source, key, 0)
    with pytest.raises(FileNotFoundError, match=r"none is missing: params.yaml:record_tables.reader_study.ratings"):
        reader_results(ReaderRatings(str(tmp_path / "none"), 50), key, 0)


def test_a_sheet_of_this_study_that_is_not_whole_is_an_error(tmp_path, references):
    _, _, folder = rated(tmp_path, references, ("medim", "unidisc"))
    lines = (folder / "0.csv").read_text().splitlines(keepends=True)
    (folder / "0.csv").write_text("".join(lines[:-8]))
    with pytest.raises(ValueError, match=r"0.csv lacks 2 of 24 cases"):
        reader_results(ReaderRatings(str(folder), 50), tmp_path / "reader_key.json", 0)


def test_what_can_be_asked(references):
    names = [question.id for question in asked(("agreement", "findings"), WORDS)]
    assert names[0] == "agreement" and "finding: effusion" in names and "finding: necrosis" in names
    assert asked(("findings",), {"phantom_cxr": "x"})[0].datasets == ("phantom_cxr",)
    assert asked(("findings",), {"mine": "x"}) == ()
    with pytest.raises(ValueError, match="no question 'colour' for readers: there are agreement, "):
        asked(("colour",), WORDS)
    assert len(real_pairs(references)) == 24


def test_no_models_are_no_study_and_no_free_pairs_an_error(tmp_path, references):
    study = prepare_study((), SPEC, {}, references, 0)
    write_study(study, tmp_path / "page" / "page.html", tmp_path / "key.json")
    assert shown(study) == "study none: no pairs" and "No study" in study.page
    (tmp_path / "ratings").mkdir()
    assert reader_results(ReaderRatings(str(tmp_path / "ratings"), 50), tmp_path / "key.json", 0).metrics == {}
    with pytest.raises(ValueError, match="medim has no free pairs"):
        prepare_study(("medim", REAL), SPEC, {"medim": Answers([], "")}, references, 0)
    few = {"medim": free("MeDiM", 3)}
    with pytest.raises(ValueError, match="needs 12 pairs of MeDiM"):
        prepare_study(("medim", REAL), SPEC, few, references, 0)
    assert replace(SPEC, pairs=12).settings(("a", "b"), 0).pairs == 12
