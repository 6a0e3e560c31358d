"""Sample sheets: a reader that always sees the same findings, phantoms whose findings are known, pixels by hand."""

from __future__ import annotations

import numpy as np
import pytest
from certain_reader import certain_reader

from medim.data.splits import drawn_pairs
from medim.evaluation import Evaluation, Reference
from medim.figures import BLACK, GREEN, RED, font
from medim.pairs import load_images, write_pairs
from medim.sample_sheets import (
    AGREES,
    AMBER,
    BLUE,
    DENIED,
    IN_DEGREE,
    PURPLE,
    SAID_ONLY,
    SHOWN_ONLY,
    TEXT,
    UNRECOGNISED,
    Cell,
    cells_of,
    counted,
    draw_sheet,
    heading_of,
    lines_of,
    marks_of,
    sample_sheets,
    settled,
)
from medim.systems import Sample

MAGENTA = np.full((32, 32, 3), (255, 0, 255), np.uint8)  # no phantom and no text has this colour


@pytest.fixture
def reference(tmp_path):
    for split, count in (("train", 4), ("test", 20)):
        write_pairs(tmp_path / f"{split}.parquet", drawn_pairs("phantom_cxr", split, 0, count, 32))
    return Reference("phantom_cxr", tmp_path / "test.parquet", tmp_path / "train.parquet", certain_reader("edema"))


def answer(task: str, pair_id: str, image=None, report=None, dataset: str = "phantom_cxr") -> Sample:
    return Sample("MeDiM", task, dataset, pair_id, 0, image, "chest x-ray", report, 3)


def magenta(page) -> int:
    return int((np.asarray(page) == (255, 0, 255)).all(-1).sum())


def test_findings_are_told_apart_by_which_side_names_them():
    said = {"left effusion": "present", "edema": "uncertain", "left nodule": "uncertain", "pacemaker": "absent"}
    shown = {"left effusion": "present", "edema": "present", "cardiomegaly": "uncertain"}
    assert marks_of(said, shown) == (
        (AGREES, "left effusion"),
        (SAID_ONLY, "left nodule (uncertain)"),
        (SHOWN_ONLY, "cardiomegaly (uncertain)"),
        (IN_DEGREE, "edema (uncertain in the report)"),
    )
    assert marks_of({"edema": "uncertain"}, {"edema": "uncertain"}) == ((AGREES, "edema (uncertain)"),)
    assert marks_of({}, {"edema": "absent"}) == ()


def test_a_finding_that_its_own_report_denies_agrees_with_nothing(reference):
    said = {"edema": "present", "pacemaker": "uncertain", "left nodule": "present"}
    assert marks_of(said, {"edema": "present"}, {"edema", "pacemaker", "cardiomegaly"}) == (
        (SAID_ONLY, "left nodule"),
        (DENIED, "edema (the picture has it)"),
        (DENIED, "pacemaker (the picture lacks it)"),
    )
    pair = next(pair for pair in reference.test if "pacemaker" not in pair.states)
    report = "There is a pacemaker. No pacemaker."
    (cell,) = cells_of([answer("joint", "joint-0", MAGENTA, report)], reference)
    assert (DENIED, "pacemaker (the picture lacks it)") in cell.marks
    (given,) = cells_of([answer("image_to_report", pair.pair_id, report="There is a pacemaker.")], reference)
    assert (SAID_ONLY, "pacemaker") in given.marks


def test_a_given_report_is_held_against_what_the_reader_sees(reference):
    pairs = reference.test[:6]
    cells = cells_of([answer("report_to_image", pair.pair_id, MAGENTA) for pair in pairs], reference)
    for cell, pair in zip(cells, pairs, strict=True):
        assert (cell.prompt, cell.report) == (pair.prompt, pair.report)
        assert cell.marks == marks_of(pair.states, {"edema": "present"})


def test_a_generated_report_is_held_against_the_truth_not_the_reader(reference):
    pairs = reference.test[:6]
    cells = cells_of([answer("image_to_report", pair.pair_id, report=pair.report) for pair in pairs], reference)
    assert all(kind == AGREES for cell in cells for kind, _ in cell.marks)
    assert [len(cell.marks) for cell in cells] == [len(pair.states) for pair in pairs]
    np.testing.assert_array_equal(np.stack([cell.image for cell in cells]), load_images(pairs))
    silent = cells_of([answer("image_to_report", pair.pair_id, report="") for pair in pairs], reference)
    assert {kind for cell in silent for kind, _ in cell.marks} == {SHOWN_ONLY}


def test_a_joint_pair_is_held_against_itself(reference):
    report = next(pair.report for pair in reference.test if pair.states == {})
    (cell,) = cells_of([answer("joint", "joint-1", MAGENTA, report)], reference)
    assert cell.marks == ((SHOWN_ONLY, "edema"),)


def test_a_pair_that_is_gone_is_an_error(reference):
    with pytest.raises(ValueError, match=r"pair 'x'.*phantom_cxr.*dvc repro generate"):
        cells_of([answer("report_to_image", "x", MAGENTA)], reference)


def test_the_heading_says_domain_task_system_and_how_much_agrees():
    rows = [((AGREES, "a"), (SAID_ONLY, "b")), ((AGREES, "a"),), ()]
    cells = [Cell(MAGENTA, "", "", row) for row in rows]
    assert counted(cells) == ({AGREES: 2, SAID_ONLY: 1}, 2, 1)
    heading = heading_of("MeDiM", "phantom_cxr", "report_to_image", cells, 7)
    assert heading[0] == [("phantom_cxr · report to image · MeDiM", BLACK)]
    text = " ".join(words for line in heading for words, _ in line)
    assert "Shown: 3 of 7 samples" in text and "2 of 3 findings agree" in text
    assert "2 of 3 samples agree in all of their findings; 1 of these have none" in text
    assert heading[-1] == [
        ("✓ said and seen: 2", GREEN), ("✗ said, not seen: 1", RED), ("○ seen, not said: 0", BLUE),
        ("≈ said and seen, one of them as uncertain: 0", AMBER),
        ("! said and denied by the same report: 0", PURPLE),
    ]  # fmt: skip
    joint = heading_of("MeDiM", "phantom_cxr", "joint", cells, 7)
    assert "the 7 pairs that count as phantom_cxr" in joint[1][0][0]
    unknown = heading_of("MeDiM", "mine", "report_to_image", [Cell(MAGENTA, "", "", None)], 1)
    assert "not known" in unknown[-1][0][0]


def test_lines_fit_under_the_picture_and_an_empty_report_is_said():
    cell = Cell(MAGENTA, "chest x-ray", "word " * 80 + "w" * 90, ((SAID_ONLY, "right consolidation (uncertain)"),))
    lines = lines_of(cell, 128)
    assert all(font(size=TEXT).getlength(words) <= 128 for words, _ in lines)
    assert "".join(words for words, _ in lines).replace(" ", "").count("word") == 80
    assert lines[-1][1] == RED
    texts = [words for words, _ in lines_of(Cell(MAGENTA, "", "", ()), 300)]
    assert texts == ["(the report is empty)", "", "no finding on either side"]


def test_every_dataset_and_task_has_its_sheet_of_whole_pixels(reference):
    many = [answer("report_to_image", pair.pair_id, MAGENTA) for pair in reference.test]
    few = [answer("joint", f"joint-{k}", MAGENTA, "edema") for k in range(3)]
    sheets = sample_sheets([*many, *few], {"phantom_cxr": reference}, columns=4, zoom=4)
    assert {key: magenta(page) for key, page in sheets.items()} == {
        ("phantom_cxr", "report_to_image"): 16 * 128**2, ("phantom_cxr", "joint"): 3 * 128**2,
    }  # fmt: skip


def test_cells_have_equal_size():
    under = [[("x", BLACK)] * n for n in (1, 9, 2, 0)]
    page = draw_sheet([MAGENTA] * 4, under, [("", BLACK)] * 4, 2, 2, [[("t", BLACK)]])
    there = (np.asarray(page) == (255, 0, 255)).all(-1)
    rows, columns = np.flatnonzero(np.diff(there.any(1).astype(int)) == 1), np.flatnonzero(there.any(0))
    assert len(rows) == 2 and there.sum() == 4 * 64**2
    assert page.width == 2 * (64 + 20) + 1 and columns[0] == 10
    assert rows[1] - rows[0] == 17 + 64 + 9 * 17 + 10  # number, picture, the longest text of all cells, margin
    with pytest.raises(ValueError, match="at least one sample"):
        draw_sheet([], [], [], 4, 4, [[("t", BLACK)]])


def test_free_samples_go_to_the_dataset_that_they_turned_into(reference):
    free = [answer("joint", "joint-0", MAGENTA, "edema", "all"), answer("report_to_image", "p", MAGENTA)]
    chest = Evaluation({"phantom_cxr": reference}, {"phantom_cxr": "chest x-ray"}, None, None, 0)
    assert [sample.dataset for sample in settled(free, chest)] == ["phantom_cxr", "phantom_cxr"]
    mine = Evaluation({"mine": reference}, {"mine": "knee"}, None, None, 0)  # the reader knows no such domain
    assert [sample.dataset for sample in settled(free, mine)] == [UNRECOGNISED, "phantom_cxr"]
    sheets = sample_sheets(settled(free[:1], mine), {}, 4, 4)
    assert list(sheets) == [(UNRECOGNISED, "joint")]
