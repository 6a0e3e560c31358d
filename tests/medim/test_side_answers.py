"""Scores of reports with and without their sides exchanged, from a system whose probabilities are known."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from medim.evaluation import Evaluation, EvaluationSettings
from medim.generation import sample_seed
from medim.metrics.image_quality import QualitySettings
from medim.metrics.java import Meteor
from medim.pairs import Pair, encode_png
from medim.side_answers import SIDE_SCHEMA, SideScore, read_sides, says_sides, score_sides
from medim.systems import ReportLikelihood

PICTURE = encode_png(np.zeros((4, 4, 3), np.uint8))
REPORTS = ["left effusion.", "no effusion.", "Right nodule.", "clear lungs.", "left and right nodules of one kind."]
PAIRS = [Pair(f"d-{n}", "s", "p", "d", "", PICTURE, "x-ray, left lung", text) for n, text in enumerate(REPORTS)]


class Listener:
    """Believes every picture to show the left; each `left` in the text is then worth 2 nats, each character costs 1."""

    row = "Listener"

    def __init__(self, lives: int = 99) -> None:
        self.lives, self.texts = lives, []

    def report_log_p(self, texts, pictures, seeds, masks, rows):
        if not self.lives:
            raise RuntimeError("killed")
        self.lives -= 1
        self.texts += texts
        bonus = 0.0 if pictures is None else 2.0
        return np.array([bonus * text.lower().count("left") - len(text) for text in texts])


def scored(folder, system, name="out", work="w"):
    assert score_sides(system, "d", PAIRS, 5, 16, 2, folder / work, folder / f"{name}.parquet") == len(PAIRS)
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_scores_are_the_differences_of_log_p(tmp_path):
    assert isinstance(Listener(), ReportLikelihood)
    first, silent, third, *_ = scored(tmp_path, Listener())
    text, other = "x-ray, left lung: left effusion.", "x-ray, right lung: right effusion."
    assert first == {
        "row": "Listener", "dataset": "d", "pair_id": "d-0", "seed": sample_seed(5, "side", "d", 0), "exchanged": other,
        "s_true": 4.0, "s_exchanged": 0.0, "true_given_picture": 4.0 - len(text), "true_alone": -len(text),
        "exchanged_given_picture": -len(other), "exchanged_alone": -len(other),
    }  # fmt: skip
    assert (third["s_true"], third["s_exchanged"]) == (2.0, 2.0)
    assert set(silent) == set(SIDE_SCHEMA.names)
    assert {name for name, value in silent.items() if value is not None} == {"row", "dataset", "pair_id", "seed"}


def test_a_pair_whose_report_names_no_side_is_not_asked(tmp_path):
    """Though its prompt does: with both sides ill, the other prompt is as true."""
    system = Listener()
    rows = scored(tmp_path, system)
    assert [row["s_true"] is None for row in rows] == [False, True, False, True, False]
    assert not [text for text in system.texts if "clear lungs" in text]


@pytest.mark.parametrize(
    ("findings", "asked"),
    [
        ({"left nodule": "present", "right nodule": "present"}, False),
        ({"left nodule": "present", "right nodule": "uncertain"}, True),
        ({"left nodule": "present", "edema": "present"}, True),
        ({"edema": "present"}, False),
    ],
)
def test_of_a_drawn_pair_the_findings_say_whether_sides_matter(findings, asked):
    """The same on both sides stays true, in whatever order the report speaks of them."""
    report = "Left nodule. Right nodule."
    pair = Pair("d-0", "s", "p", "d", "", PICTURE, "x-ray", report, findings=json.dumps(findings))
    assert says_sides(pair) == asked


def test_a_killed_run_scores_only_what_is_left(tmp_path):
    scored(tmp_path, Listener(), "whole", "w1")
    with pytest.raises(RuntimeError, match="killed"):
        score_sides(Listener(lives=4), "d", PAIRS, 5, 16, 2, tmp_path / "w2", tmp_path / "cut.parquet")
    assert not (tmp_path / "cut.parquet").exists()
    scored(tmp_path, Listener(lives=8), "cut", "w2")
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_metrics_count_the_scored_pairs(tmp_path):
    scored(tmp_path, Listener())
    quality = QualitySettings(is_splits=1, kid_subsets=1, kid_subset_size=2, neighbours=1, resamples=2)
    evaluation = Evaluation({}, {}, EvaluationSettings(20, quality, None, None, ()), Meteor(), 0)
    found = evaluation.sides(read_sides(tmp_path / "out.parquet"))
    assert set(found) == {f"d/side/{name}" for name in ("side_auroc", "side_pair_accuracy", "pairs_with_side")}
    # true 4, 2, 4 against exchanged 0, 2, 2
    assert found["d/side/side_auroc"].value == pytest.approx((3 + 1 + 0.5 + 0.5 + 3) / 9)
    assert found["d/side/side_pair_accuracy"].value == pytest.approx(2.5 / 3)
    assert found["d/side/side_auroc"].n == 3
    assert (found["d/side/pairs_with_side"].value, found["d/side/pairs_with_side"].n) == (0.6, 5)
    nothing = evaluation.sides([SideScore("r", "e", "e-0", None, None)])
    assert nothing["e/side/side_auroc"] == (None, None, None, 0)
    assert evaluation.sides([]) == {}


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro generate"):
        read_sides(tmp_path / "none.parquet")
