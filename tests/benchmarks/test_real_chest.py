"""Real pictures go the whole way; folds never share a case; on made files the rules' scores are known."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.real_chest import (
    DATA,
    FOLDER,
    Held,
    answers,
    cross_validated,
    folds_of,
    is_copy,
    main,
    real_pairs,
    scores_of,
    table,
)
from medim.metrics.java import MATCHERS, Meteor

NOTES = ("There is a left pleural effusion.", "No pneumothorax. The heart is normal.", "Bilateral consolidation.")


def write_data(root, cases=6, patients=lambda case: f"p{case}"):
    """Two pictures a case; the notes of three kinds."""
    (root / FOLDER / "images").mkdir(parents=True)
    with (root / FOLDER / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patientid", "filename", "url", "clinical_notes"])
        for case in range(cases):
            for number in range(2):
                pixels = np.full((20, 24), 20 + 70 * (case % 3) + number, np.uint8)
                Image.fromarray(pixels).save(root / FOLDER / "images" / f"{case}-{number}.png")
                writer.writerow([patients(case), f"{case}-{number}.png", f"http://x/{case}", NOTES[case % 3]])
    return root


@pytest.fixture
def made(tmp_path):
    return real_pairs(write_data(tmp_path), 32)


def test_every_picture_is_held_out_once_and_no_case_is_on_both_sides(made):
    folds = folds_of(made, 3, 0)
    assert sorted(pair.pair_id for fold in folds for pair in fold) == sorted(pair.pair_id for pair in made)
    cases = [{pair.patient_id for pair in fold} for fold in folds]
    assert sum(map(len, cases)) == len(set.union(*cases)) == 6
    assert [len(fold) for fold in folds] == [4, 4, 4] and folds == folds_of(made, 3, 0) != folds_of(made, 3, 1)
    for wrong in (1, 7):
        with pytest.raises(ValueError, match=f"between 2 and the 6 cases, got {wrong}"):
            folds_of(made, wrong, 0)


def test_a_patient_in_two_cases_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"patients p stand in two cases \(url\)"):
        real_pairs(write_data(tmp_path, 2, lambda _: "p"), 32)


def test_scores_of_known_answers(made):
    true = {pair.pair_id: pair.report for pair in made}
    known = {pair.pair_id: [NOTES[0]] for pair in made}
    with Meteor(timeout=120, matchers=MATCHERS[:2]) as meteor:
        right = scores_of(Held(dict(true), known), true, meteor, 0)
        silent = scores_of(Held(dict.fromkeys(true, ""), known), true, meteor, 0)
    for name in ("BLEU-1 (coco)", "ROUGE-L (coco)", "length_ratio", "ce_rules_micro_f1_14 (uncertain as negative)"):
        assert right[name].value == pytest.approx(1) and silent[name].value == 0 and right[name].n == 12
    assert right["copied_from_train"].value == pytest.approx(1 / 3) and silent["copied_from_train"].value == 0
    text = table({"R2Gen": right, "trivial: constant": silent})
    assert "| BLEU-1 (coco) | 12 | 1.000 (1.000–1.000) | 0.000 (0.000–0.000) |" in text and "copied_from_train" in text
    assert is_copy("THE heart.", ["the heart"]) == 1 and is_copy("", [""]) == 0


def test_r2gen_learns_what_pictures_show(made, tmp_path):
    """Three brightnesses, three notes: pictures of cases that it never saw get the note of their brightness."""
    train, test = [pair for pair in made if pair.patient_id < "http://x/3"], made[6:]
    found = answers(train, test, 30, 0, tmp_path)
    written = [sample.report for sample in found if sample.row == "R2Gen"]
    assert written == [pair.report for pair in test]
    nearest = [sample.report for sample in found if sample.row == "trivial: nearest neighbour"]
    assert nearest == [pair.report for pair in test]


def test_the_data_may_be_missing(tmp_path, capsys):
    assert main(["--data", str(tmp_path)]) == 1
    assert "metadata.csv is missing: give the folder" in capsys.readouterr().out


@pytest.mark.skipif(not (DATA / FOLDER).is_dir(), reason="the real pictures are not here")
def test_real_pictures_go_the_whole_way():
    pairs = real_pairs(DATA, 32)
    assert len(pairs) == 27 and len({pair.patient_id for pair in pairs}) == 14
    few = [replace(pair, report=pair.report[:60]) for pair in pairs[:6]]
    rows = cross_validated(few, 2, 4, 0)
    assert next(iter(rows)) == "R2Gen" and len(rows) == 4
    assert all(sorted(held.said) == sorted(pair.pair_id for pair in few) for held in rows.values())
