import numpy as np
import pytest

from medim.generation import Question, answer, questions, read_generated, sample_seed
from medim.pairs import Pair, encode_png
from medim.systems import JOINT_DATASET, Sample

PICTURE = encode_png(np.zeros((4, 4, 3), np.uint8))
PAIRS = [Pair(f"d-{n}", "s", "p", "d", "", PICTURE, "x-ray", f"Report {n}.") for n in range(10)]


class Echo:
    """Answers with the seed, and dies after a number of batches."""

    tasks = ("image_to_report", "joint")

    def __init__(self, lives=99):
        self.lives, self.asked = lives, []

    def generate(self, task, dataset, pairs, seeds):
        if not self.lives:
            raise RuntimeError("killed")
        self.lives -= 1
        self.asked.append(len(pairs))
        return [
            Sample("Echo", task, dataset, p.pair_id, s, None, "x-ray", f"{p.report} {s}", 3)
            for p, s in zip(pairs, seeds, strict=True)
        ]


def test_every_pair_is_answered_once_in_order(tmp_path):
    question = Question("image_to_report", "d", PAIRS)
    assert answer(Echo(), question, 5, 4, tmp_path / "w", tmp_path / "out.parquet") == 10
    samples = read_generated(tmp_path / "out.parquet")
    assert [s.pair_id for s in samples] == [p.pair_id for p in PAIRS]
    assert [s.seed for s in samples] == [sample_seed(5, "image_to_report", "d", n) for n in range(10)]
    assert len({s.seed for s in samples}) == 10


def test_a_killed_run_asks_only_what_is_left_and_writes_the_same_bytes(tmp_path):
    question = Question("image_to_report", "d", PAIRS)
    answer(Echo(), question, 5, 4, tmp_path / "w1", tmp_path / "whole.parquet")
    with pytest.raises(RuntimeError, match="killed"):
        answer(Echo(lives=2), question, 5, 4, tmp_path / "w2", tmp_path / "cut.parquet")
    assert not (tmp_path / "cut.parquet").exists()
    second = Echo()
    answer(second, question, 5, 4, tmp_path / "w2", tmp_path / "cut.parquet")
    assert second.asked == [2]
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_questions_are_those_the_system_can_answer():
    found = questions(Echo(), {"d": PAIRS, "empty": []}, ["report_to_image", "image_to_report", "joint"], 3)
    assert [(q.task, q.dataset, len(q.pairs)) for q in found] == [
        ("image_to_report", "d", 10), ("joint", JOINT_DATASET, 3)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="none of"):
        questions(Echo(), {"d": PAIRS}, ["report_to_image"], 0)


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro generate"):
        read_generated(tmp_path / "none.parquet")
