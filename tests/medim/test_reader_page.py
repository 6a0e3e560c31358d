import base64
import json
import re
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from medim.metrics.reader_questions import AGREEMENT, ERRORS, ORIGIN, REAL
from medim.metrics.reader_sheet import read_key
from medim.pairs import decode_png
from medim.reader_page import (
    TEMPLATE,
    StudyPair,
    StudySettings,
    build_study,
    choose_pairs,
    sample_pair,
    shares,
    write_study,
)
from medim.systems import Sample

SETTINGS = StudySettings(
    title="Pairs & reports <1>", introduction="Rate what you see.", questions=(AGREEMENT, ORIGIN, ERRORS[2]),
    datasets={"phantom_cxr": "chest x-ray", "phantom_pathology": "histology"}, systems=("MeDiM", "UniDisc"), pairs=100,
    repeats=0.1, seed=3,
)  # fmt: skip


def make_pairs(each=30, size=8):
    rng = np.random.default_rng(0)
    return [
        StudyPair(system, dataset, rng.integers(0, 256, (size, size, 3), dtype=np.uint8), f"Report </script> {i}.", "",
                  {"seed": i, "model": "weights-7f"})
        for system in ("MeDiM", "UniDisc") for dataset in SETTINGS.datasets for i in range(each)
    ]  # fmt: skip


PAIRS = make_pairs()


def content_of(page):
    (found,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def study():
    return build_study(PAIRS, SETTINGS)


def test_as_many_of_each_system_and_dataset():
    chosen = choose_pairs(PAIRS, SETTINGS)
    count = {(s, d): sum(p.system == s and p.dataset == d for p in chosen) for s in SETTINGS.systems
             for d in SETTINGS.datasets}  # fmt: skip
    assert set(count.values()) == {25}
    odd = choose_pairs(PAIRS, replace(SETTINGS, pairs=6))
    assert [(p.system, p.dataset) for p in odd].count(("MeDiM", "phantom_cxr")) == 2
    assert len({id(p) for p in chosen}) == 100


def test_the_page_holds_every_pair_and_the_key_knows_it(study):
    content = content_of(study.page)
    assert content["study"] == study.key.study and content["repeats"] == study.key.repeats == 10
    assert content["title"] == SETTINGS.title
    assert len(content["items"]) == len(study.key.cases) == 100
    by_seed = {(p.system, p.dataset, p.origin["seed"]): p for p in PAIRS}
    for item in content["items"]:
        case = study.key.cases[item["id"]]
        pair = by_seed[case.system, case.dataset, case.origin["seed"]]
        np.testing.assert_array_equal(decode_png(base64.b64decode(item["image"])), pair.image)
        assert (item["report"], item["dataset"]) == (pair.report, pair.dataset)
        assert set(item) == {"id", "dataset", "report", "image"}


def test_nothing_in_the_page_tells_the_system(study):
    for name in ("MeDiM", "UniDisc", "medim", "unidisc", "weights-7f"):
        assert name not in study.page
    ids = [item["id"] for item in content_of(study.page)["items"]]
    assert ids == sorted(ids) and all(re.fullmatch(r"[0-9a-f]{10}", one) for one in ids)
    systems = [study.key.cases[one].system for one in ids]
    changes = sum(a != b for a, b in pairwise(systems))
    assert 35 <= changes <= 65  # as in a random order; 1 where the systems stand one after the other


def test_the_page_asks_nothing_of_any_network(study):
    template = TEMPLATE.read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|src=\"(?!\")", template)
    assert "default-src 'none'" in template
    assert study.page.count("</script>") == 2  # the report's own is escaped
    assert "<title>Pairs &amp; reports &lt;1&gt;</title>" in study.page


def test_the_same_seed_gives_the_same_bytes_another_other_ids(study):
    again, other = build_study(PAIRS, SETTINGS), build_study(PAIRS, replace(SETTINGS, seed=4))
    assert again == study
    assert not set(other.key.cases) & set(study.key.cases) and other.key.study != study.key.study


def test_page_and_key_are_written_apart(study, tmp_path):
    page, key = tmp_path / "send" / "study.html", tmp_path / "keep" / "key.json"
    write_study(study, page, key)
    assert page.read_text() == study.page and read_key(key) == study.key
    assert [path.name for path in page.parent.iterdir()] == ["study.html"]
    with pytest.raises(ValueError, match="lie in one folder"):
        write_study(study, page, page.with_name("key.json"))


def test_pictures_of_two_sizes_would_unblind():
    larger = [replace(p, image=np.zeros((9, 9, 3), np.uint8)) if p.system == "UniDisc" else p for p in PAIRS]
    with pytest.raises(ValueError, match=r"sizes \[\(8, 8, 3\), \(9, 9, 3\)\]: readers would tell"):
        build_study(larger, SETTINGS)
    with pytest.raises(ValueError, match=r"name \['MeDiM'\]"):
        build_study(PAIRS, replace(SETTINGS, title="MeDiM or not?"))


def test_too_few_pairs_are_an_error():
    with pytest.raises(ValueError, match="needs 50 pairs of MeDiM that show phantom_cxr, phantom_pathology, there are"):
        choose_pairs(make_pairs(20), SETTINGS)


def test_a_system_that_has_too_few_of_one_dataset_shows_more_of_the_other():
    few = [p for p in make_pairs(45) if not (p.dataset == "phantom_cxr" and p.system == "MeDiM")]
    few += [p for p in make_pairs(9) if p.dataset == "phantom_cxr" and p.system == "MeDiM"]
    chosen = choose_pairs(few, SETTINGS)
    count = {(s, d): sum(p.system == s and p.dataset == d for p in chosen) for s in SETTINGS.systems
             for d in SETTINGS.datasets}  # fmt: skip
    assert list(count.values()) == [9, 41, 25, 25]
    assert shares(7, [1, 9, 9]) == [1, 3, 3] and shares(5, [9, 9]) == [3, 2] and shares(0, [0]) == [0]
    with pytest.raises(ValueError, match="do not fit"):
        shares(3, [1, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"systems": ("MeDiM",)}, "two or more"), ({"systems": ("A", "A")}, "two or more"), ({"pairs": 99}, "multiple of"),
     ({"repeats": 0.5}, "repeats must lie"), ({"datasets": {}}, "datasets must name"), ({"questions": (ERRORS[0],)},
      "no required question")],
)  # fmt: skip
def test_settings_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SETTINGS, **change)


def test_repeats_fit_into_the_first_third():
    assert replace(SETTINGS, pairs=8, repeats=1 / 3).shown_again == 2
    assert replace(SETTINGS, repeats=0.0).shown_again == 0


def test_a_real_system_may_be_among_them():
    real = [replace(p, system=REAL) if p.system == "UniDisc" else p for p in PAIRS]
    found = build_study(real, replace(SETTINGS, systems=(REAL, "MeDiM"), introduction="Some are real."))
    assert sum(case.system == REAL for case in found.key.cases.values()) == 50


def test_a_sample_becomes_a_pair():
    sample = Sample("MeDiM", "joint", "all", "joint-5", 5, PAIRS[0].image, "chest x-ray", "Clear lungs.", 64)
    pair = sample_pair(sample, "phantom_cxr", "", "d1e2")
    assert (pair.system, pair.dataset, pair.report) == ("MeDiM", "phantom_cxr", "Clear lungs.")
    assert pair.origin == {"model": "d1e2", "pair_id": "joint-5", "prompt": "chest x-ray", "seed": 5, "task": "joint"}
    with pytest.raises(ValueError, match="is no whole pair"):
        sample_pair(replace(sample, report=None), "phantom_cxr", "", "d1e2")


def test_the_template_is_packaged():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "*.html" in project["tool"]["setuptools"]["package-data"]["medim"]
