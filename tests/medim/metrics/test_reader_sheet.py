import csv
import json

import numpy as np
import pytest
from simulated_readers import make_key, row_of, write_rows, write_sheet

from medim.metrics.reader_questions import (
    AGREEMENT,
    ERRORS,
    ORIGIN,
    Question,
    check_questions,
    finding_questions,
    scale,
    sheet_columns,
)
from medim.metrics.reader_sheet import read_key, read_ratings

WHOLE = {AGREEMENT.id: "4", ORIGIN.id: "real"}
KEY = make_key(("real", "MeDiM"), ("chest", "slides"), 2)


@pytest.fixture
def sheet(tmp_path):
    def write(change=lambda rows: rows, key=KEY, name="anna"):
        rows = [row_of(key, name, i, case, 1, WHOLE) for i, case in enumerate(key.cases)]
        return write_rows(tmp_path / f"{name}.csv", change(rows))

    return write


def test_the_key_comes_back(tmp_path):
    path = tmp_path / "key.json"
    path.write_text(KEY.dumps())
    assert read_key(path) == KEY
    assert KEY.dumps() == read_key(path).dumps()
    assert KEY.dumps().endswith("}\n")


def test_ratings_are_numbers_of_options(sheet):
    def change(rows):
        rows[0] |= {ERRORS[2].id: "significant", AGREEMENT.id: "1", "seconds": "7", "comment": 'a, "b"\nc'}
        return list(reversed(rows))

    ratings = read_ratings([sheet(change), sheet(name="bert")], KEY)
    assert ratings.readers == ("anna", "bert")
    assert ratings.cases == tuple(sorted(KEY.cases))
    assert ratings.first[AGREEMENT.id].tolist() == [[0, 3], *[[3, 3]] * 7]
    assert ratings.first[ERRORS[2].id][:2].tolist() == [[2, 0], [0, 0]]  # no answer is the first option
    assert ratings.seconds[0].tolist() == [7, 2.5]
    assert np.isnan(ratings.again[AGREEMENT.id]).all()
    assert ratings.rows("real", "chest").tolist() == [0, 1]
    assert ratings.rows("MeDiM", None).tolist() == [4, 5, 6, 7]
    assert ratings.systems == ("MeDiM", "real") and ratings.datasets == ("chest", "slides")


def test_a_second_showing_stands_apart(tmp_path):
    key = make_key(("real", "MeDiM"), ("chest",), 3, repeats=2)
    answer = lambda case, number: WHOLE | {AGREEMENT.id: str(number)}  # noqa: E731
    ratings = read_ratings([write_sheet(tmp_path / "a.csv", key, "anna", answer, ["0001", "0004"])], key)
    assert set(ratings.first[AGREEMENT.id].ravel()) == {0}
    assert np.flatnonzero(~np.isnan(ratings.again[AGREEMENT.id][:, 0])).tolist() == [1, 4]
    with pytest.raises(ValueError, match=r"1 cases were shown again, study 0123456789abcdef shows 2"):
        read_ratings([write_sheet(tmp_path / "b.csv", key, "bert", answer, ["0001"])], key)


def test_a_question_of_one_dataset_is_not_asked_of_another(tmp_path):
    questions = (AGREEMENT, *finding_questions("chest", ["left effusion"]))
    key = make_key(("real", "MeDiM"), ("chest", "slides"), 1, questions=questions)

    def answer(case, _number):
        found = {"finding: left effusion": "absent"} if key.cases[case].dataset == "chest" else {}
        return {AGREEMENT.id: "2"} | found

    ratings = read_ratings([write_sheet(tmp_path / "a.csv", key, "anna", answer)], key)
    assert np.isnan(ratings.first["finding: left effusion"][:, 0]).tolist() == [False, True, False, True]
    everywhere = lambda case, number: {AGREEMENT.id: "2", "finding: left effusion": "absent"}  # noqa: E731
    with pytest.raises(ValueError, match="'absent', but is not asked of this case"):
        read_ratings([write_sheet(tmp_path / "b.csv", key, "bert", everywhere)], key)


def drop(row, column):
    return {key: value for key, value in row.items() if key != column}


def changed(**fields):
    def change(rows):
        rows[2] |= fields
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(study="ffff"), r"line 4: study 'ffff', the key is of '0123456789abcdef'"),
        (changed(case="9999"), r"line 4: case '9999' is not in study"),
        (changed(case="0000"), r"line 4: case 0000, pass 1 stands on line 2 too"),
        (changed(**{"pass": "3"}), r"pass '3' is not one of"),
        (changed(agreement="6"), r"line 4: agreement is '6', must be one of \('1', '2', '3', '4', '5'\)"),
        (changed(agreement=""), r"1 of 8 showings have no answer to 'agreement' \(0002\): let the reader"),
        (changed(seconds="soon"), r"line 4: seconds is 'soon', no number"),
        (changed(seconds="-1"), r"seconds is -1.0, must be finite"),
        (changed(seconds="inf"), r"seconds is inf"),
        (changed(reader="bert"), r"must be of one named reader, its column 'reader' holds \['anna', 'bert'\]"),
        (lambda rows: rows[:3], r"lacks 5 of 8 cases \(0003, 0004, 0005, 0006, 0007\): export it again"),
        (lambda rows: [drop(row, "agreement") for row in rows], r"missing columns \['agreem"),
        (lambda rows: [row | {"mood": ""} for row in rows], r"unknown or double ones \['mood'\]"),
        (lambda rows: [row | {"reader": " "} for row in rows], r"one named reader"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_an_error(sheet, change, words):
    with pytest.raises(ValueError, match=words):
        read_ratings([sheet(change)], KEY)


def test_files_that_are_no_sheets(sheet, tmp_path):
    with pytest.raises(ValueError, match="has no sheet: ask the readers"):
        read_ratings([], KEY)
    with pytest.raises(FileNotFoundError, match=r"nobody.csv is missing"):
        read_ratings([tmp_path / "nobody.csv"], KEY)
    path = sheet()
    copy = tmp_path / "copy.csv"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="are both of reader 'anna'"):
        read_ratings([path, copy], KEY)
    rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    copy.write_text("\n".join(";".join(row) for row in rows))
    with pytest.raises(ValueError, match="saved by a spreadsheet"):
        read_ratings([copy], KEY)
    copy.write_text(path.read_text(encoding="utf-8-sig") + "one,two\n")
    with pytest.raises(ValueError, match="line 10: 2 fields, the header has 14"):
        read_ratings([copy], KEY)
    copy.write_text(",".join(rows[0]) + "\n")
    with pytest.raises(ValueError, match="a header but no row"):
        read_ratings([copy], KEY)
    copy.write_text("")
    with pytest.raises(ValueError, match="missing columns"):
        read_ratings([copy], KEY)


def test_files_that_are_no_keys(tmp_path):
    with pytest.raises(FileNotFoundError, match="it is the key"):
        read_key(tmp_path / "key.json")
    broken = json.loads(KEY.dumps())
    for change in ({"format": 2}, {"questions": [{"id": "x"}]}, {"cases": {"a": {}}}):
        (tmp_path / "key.json").write_text(json.dumps(broken | change))
        with pytest.raises(ValueError, match="is no key of a reader study"):
            read_key(tmp_path / "key.json")
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(ValueError, match="is no key of a reader study"):
        read_key(tmp_path / "key.json")


def question(name="q", options=(("a", "A"), ("b", "B")), ordered=False):
    return Question(name, "?", options, ordered, True, ("chest",))


def test_questions_are_checked():
    for wrong in (
        lambda: question("case"), lambda: question(" "), lambda: question(options=(("a", "A"),)),
        lambda: question(options=(("a", "A"), ("a", "B"))), lambda: question(ordered=True),
        lambda: question(options=(("", "A"), ("b", "B"))), lambda: question(options=scale("0123456789")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="question"):
            wrong()
    check_questions([question(), question("r")], ["chest"])
    with pytest.raises(ValueError, match="two questions of the study have the id 'q'"):
        check_questions([question(), question()], ["chest"])
    with pytest.raises(ValueError, match="pairs of 'slides' are asked no required question"):
        check_questions([question()], ["chest", "slides"])
    assert sheet_columns([question()])[7] == "q"
