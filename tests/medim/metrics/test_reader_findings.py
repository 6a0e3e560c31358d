"""Findings that readers see: by hand, and simulated readers of known eyes are recovered."""

import numpy as np
import pytest
from simulated_readers import write_sheet

from medim.metrics.reader_findings import finding_agreement, stated_findings
from medim.metrics.reader_questions import AGREEMENT, FINDING, REAL, finding_questions
from medim.metrics.reader_sheet import Case, Key, read_ratings

NAMES = ("effusion", "nodule", "edema", "fracture")
QUESTIONS = (AGREEMENT, *finding_questions("cxr", NAMES))


def key_of(stated, dataset="cxr"):
    """A case for each of `stated`: (system, finding -> state, or None)."""
    cases = {f"{n:04d}": Case(system, dataset, "", {}, one) for n, (system, one) in enumerate(stated)}
    return Key("abc", QUESTIONS, 0, cases)


def ratings_of(tmp_path, key, readers):
    """`readers`: functions of a case's stated findings -> names that are seen, names that cannot be told."""

    def sheet(number, looks):
        def answer(case, _number):
            seen, unsure = looks(key.cases[case].stated or {})
            said = {FINDING + n: "present" if n in seen else "unsure" if n in unsure else "absent" for n in NAMES}
            return {AGREEMENT.id: "3", **(said if key.cases[case].dataset == "cxr" else {})}

        return write_sheet(tmp_path / f"{number}.csv", key, f"r{number}", answer)

    return read_ratings([sheet(number, looks) for number, looks in enumerate(readers)], key)


def test_sides_are_left_out_and_the_surer_state_stays():
    said = {"left effusion": "uncertain", "right effusion": "present", "edema": "uncertain", "nodule": "absent"}
    assert stated_findings(said) == {"effusion": "present", "edema": "uncertain"}


def test_by_hand(tmp_path):
    """Two stated for certain, one uncertain; seen are one of the certain, the uncertain one, and one that is not."""
    key = key_of([("A", {"effusion": "present", "nodule": "present"}), ("A", {"edema": "uncertain"})])
    shows = ({"effusion", "fracture"}, {"nodule"}), ({"edema"}, set())
    ratings = ratings_of(tmp_path, key, [lambda stated: shows["edema" in stated]])
    found = finding_agreement(ratings, 0, 50)["A", "cxr"]
    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {"recall": 1 / 2, "precision": 2 / 3, "f1": 4 / 7}
    )
    assert {one.n for one in found.values()} == {2}


def test_what_nobody_can_read_or_was_not_asked_is_left_out(tmp_path):
    key = key_of([("A", None), ("B", {"effusion": "present"})])
    found = finding_agreement(ratings_of(tmp_path, key, [lambda _: (set(), set())]), 0, 50)
    assert list(found) == [("B", "cxr")]
    assert [one.value for one in found["B", "cxr"].values()] == [0, None, 0]  # recall, precision, f1
    other = key_of([("A", {"effusion": "present"})], dataset="other")
    assert finding_agreement(ratings_of(tmp_path, other, [lambda _: (set(), set())]), 0, 50) == {}


def test_eyes_of_known_skill_are_recovered(tmp_path):
    """Readers see nine of ten real findings, six of ten generated ones, and one in twenty that is not stated."""
    rng = np.random.default_rng(3)
    stated = [
        (system, {name: "present" for name in NAMES if rng.random() < 0.5})
        for system in (REAL, "A")
        for _ in range(150)
    ]
    key = key_of(stated)
    chance = {REAL: 0.9, "A": 0.6}
    drawn = {case: {n: rng.random() for n in NAMES} for case in key.cases}

    def looks(case):
        said = key.cases[case].stated
        return {n for n in NAMES if drawn[case][n] < (chance[key.cases[case].system] if n in said else 0.05)}

    def sheet(number):
        def answer(case, _number):
            seen = looks(case)
            return {AGREEMENT.id: "3", **{FINDING + n: "present" if n in seen else "absent" for n in NAMES}}

        return write_sheet(tmp_path / f"{number}.csv", key, f"r{number}", answer)

    found = finding_agreement(read_ratings([sheet(0), sheet(1)], key), 0, 200)
    for system, recall in chance.items():
        one = found[system, "cxr"]
        assert one["recall"].low <= recall <= one["recall"].high
        precision = recall / (recall + 0.05)
        assert one["precision"].low <= precision <= one["precision"].high
    assert found["A", "cxr"]["f1"].high < found[REAL, "cxr"]["f1"].low
