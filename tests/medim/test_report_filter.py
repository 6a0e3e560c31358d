import json
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from certain_reader import certain_reader
from hypothesis import given
from hypothesis import strategies as st

from medim.data.splits import drawn_pairs
from medim.evaluation import Evaluation, EvaluationSettings, Reference
from medim.metrics.findings import finding_values
from medim.metrics.image_quality import QualitySettings
from medim.metrics.java import Meteor
from medim.pairs import Pair, encode_png, read_pairs, write_pairs
from medim.report_filter import (
    ReportFilter,
    best_pairs,
    filter_notes,
    filter_reports,
    judge_of,
    judged_scores,
    kept_ids,
    read_kept,
    read_scores,
    write_manifest,
)
from medim.systems import Sample


def pairs(count):
    for number in range(count):
        image = encode_png(np.full((4, 4, 3), number, np.uint8))
        yield Pair(
            f"p-{number}", f"s-{number}", "who", "pg", f"slide_{number}_0", image, "histology", f"Report {number}."
        )


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40), st.integers(1, 40), st.randoms()
)
def test_the_best_are_those_of_a_sort(scores, keep, shuffle):
    keep = min(keep, len(scores))
    stream = [(f"{number:03d}", score) for number, score in enumerate(scores)]
    expected = sorted(stream, key=lambda one: (-one[1], one[0]))[:keep]
    shuffle.shuffle(stream)
    ranked, judged, tied_out = best_pairs(iter(stream), keep)
    assert list(ranked.items()) == [(name, (rank, score)) for rank, (name, score) in enumerate(expected, start=1)]
    least = expected[-1][1]
    assert judged == len(scores)
    assert tied_out == sum(score == least for score in scores) - sum(score == least for _, score in expected)


def test_kept_pairs_are_unchanged_and_say_who_chose_them(tmp_path):
    source, out = tmp_path / "test.parquet", tmp_path / "filtered.parquet"
    write_pairs(source, pairs(6), group_rows=2)
    scores = [("p-5", 0.5), ("p-0", 0.1), ("p-1", 0.9), ("p-2", 0.5), ("p-3", 0.5), ("p-4", 0.0)]
    kept = filter_reports(source, scores, ReportFilter("Qwen2-VL-7B-Instruct", 3), out)
    assert read_pairs(out) == [pair for pair in read_pairs(source) if pair.pair_id in ("p-1", "p-2", "p-3")]
    table = pq.read_table(out)
    assert table["judge"].to_pylist() == ["Qwen2-VL-7B-Instruct"] * 3
    assert table["judge_score"].to_pylist() == [0.9, 0.5, 0.5] and table["judge_rank"].to_pylist() == [1, 2, 3]
    assert (kept.judged, kept.keep, kept.least, kept.tied_out, kept.source) == (6, 3, 0.5, 1, "test.parquet")
    assert "Qwen2-VL-7B-Instruct" in kept.circularity and "circular" in kept.circularity
    assert read_kept(out) == kept and json.loads((tmp_path / "filtered.parquet.json").read_text()) == vars(kept)


def test_the_order_of_the_scores_changes_no_byte(tmp_path):
    source = tmp_path / "test.parquet"
    write_pairs(source, pairs(40))
    scores = [(f"p-{number}", number % 4 / 4) for number in range(40)]
    filter_reports(source, scores, ReportFilter("j", 15), tmp_path / "a.parquet")
    random.Random(1).shuffle(scores)
    filter_reports(source, scores, ReportFilter("j", 15), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


class Darkness:
    """A judge that finds dark pictures good."""

    def scores(self, images, reports):
        assert len(images) == len(reports) <= 4
        return 1 - images.mean(axis=(1, 2, 3)) / 255


def test_a_judge_is_asked_a_chunk_at_a_time(tmp_path):
    source = tmp_path / "test.parquet"
    write_pairs(source, pairs(10))
    scores = list(judged_scores(source, Darkness(), 4))
    assert [name for name, _ in scores] == [f"p-{number}" for number in range(10)]
    assert [score for _, score in scores] == pytest.approx([1 - number / 255 for number in range(10)])
    kept = filter_reports(
        source, judged_scores(source, Darkness(), 4), ReportFilter("darkness", 2), tmp_path / "o.parquet"
    )
    assert [pair.pair_id for pair in read_pairs(tmp_path / "o.parquet")] == ["p-0", "p-1"] and kept.judged == 10


def test_scores_of_a_file(tmp_path):
    pq.write_table(pa.table({"score": [0.5, 1.0], "pair_id": ["a", "b"]}), tmp_path / "s.parquet")
    assert list(read_scores(tmp_path / "s.parquet")) == [("a", 0.5), ("b", 1.0)]
    pq.write_table(pa.table({"pair_id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="lacks the column score"):
        list(read_scores(tmp_path / "x.parquet"))
    with pytest.raises(FileNotFoundError, match="judge the pairs first"):
        list(read_scores(tmp_path / "none.parquet"))


def test_wrong_scores_are_refused_and_leave_no_file(tmp_path):
    source, out = tmp_path / "test.parquet", tmp_path / "o.parquet"
    write_pairs(source, pairs(3))
    good = [("p-0", 0.1), ("p-1", 0.2), ("p-2", 0.3)]
    for scores, message in [
        (good[:2], "holds 3 pairs and 2 scores"),
        ([*good[:2], ("p-9", 0.9)], "1 of the best pairs are not in"),
        ([*good[:2], ("p-2", 1.5)], r"p-2 is 1\.5: expected a number in \[0, 1\]"),
        ([*good[:2], ("p-2", float("nan"))], "p-2 is nan"),
        ([good[2], good[2], good[2]], "1 of the 2 best pair ids stand twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            filter_reports(source, scores, ReportFilter("j", 2), out)
        assert not out.exists()
    with pytest.raises(ValueError, match="3 pairs were judged, 4 are to be kept"):
        filter_reports(source, good, ReportFilter("j", 4), out)
    with pytest.raises(FileNotFoundError, match="dvc repro prepare_data"):
        filter_reports(tmp_path / "none.parquet", good, ReportFilter("j", 1), out)


def test_a_file_that_nobody_filtered_says_so(tmp_path):
    write_pairs(tmp_path / "test.parquet", pairs(1))
    with pytest.raises(ValueError, match="not written by the report filter"):
        read_kept(tmp_path / "test.parquet")
    with pytest.raises(FileNotFoundError):
        read_kept(tmp_path / "none.parquet")


@pytest.mark.parametrize(("judge", "keep"), [("", 3), (" ", 3), ("j", 0)])
def test_a_filter_has_a_judge_and_keeps_something(judge, keep):
    with pytest.raises(ValueError, match="needs a judge's name"):
        ReportFilter(judge, keep)


CHEST = "phantom_cxr"


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """(folder with train, test and what a judge keeps of test, its 5 best of 12, the ids kept)."""
    folder = tmp_path_factory.mktemp("chest")
    for split, count in (("train", 12), ("test", 12)):
        write_pairs(folder / f"{split}.parquet", drawn_pairs(CHEST, split, 0, count, 32))
    reference = Reference(CHEST, folder / "test.parquet", folder / "train.parquet", certain_reader("pacemaker"))
    name, judge = judge_of(None, reference)
    scores = list(judged_scores(folder / "test.parquet", judge, 5))
    kept = filter_reports(folder / "test.parquet", scores, ReportFilter(name, 5), folder / f"{CHEST}.parquet")
    write_manifest({CHEST: kept}, folder)
    return folder, dict(scores), reference


def test_the_phantom_judge_keeps_reports_that_say_what_the_picture_shows(chest):
    folder, scores, reference = chest
    said = finding_values([pair.states for pair in reference.test], reference.labels)
    pacemaker = said[:, reference.labels.index("pacemaker")]  # the only finding that this reader ever sees
    assert list(scores.values()) == pytest.approx(list(2 * pacemaker / (1 + said.sum(1))))
    best = sorted(scores, key=lambda pair_id: (-scores[pair_id], pair_id))[:5]
    assert kept_ids(folder) == {CHEST: frozenset(best)}
    assert min(scores[one] for one in best) > min(scores.values()), "nothing was chosen"
    (note,) = filter_notes(folder)
    assert note.startswith("phantom_cxr, image to report: held against 5 of 12 test reports.") and "circular" in note


def answers(reference, ids):
    return [
        Sample("x", "image_to_report", CHEST, pair.pair_id, 0, None, "chest x-ray", pair.report, 1)
        for pair in reference.test
        if pair.pair_id in ids
    ]


def test_answers_are_held_against_kept_reports_only(chest):
    folder, scores, whole = chest
    kept = kept_ids(folder)[CHEST]
    chosen = Reference(CHEST, folder / "test.parquet", folder / "train.parquet", whole.reader, kept=kept)
    write_pairs(folder / "kept.parquet", [pair for pair in whole.test if pair.pair_id in kept])
    only = Reference(CHEST, folder / "kept.parquet", folder / "train.parquet", whole.reader)
    settings = EvaluationSettings(10, QualitySettings(1, 2, 4, 3, 5), None, None, ())
    with Meteor() as meteor:
        alone, all_answers, of_kept = (
            Evaluation({CHEST: reference}, {}, settings, meteor, 0).row(answers(reference, ids))
            for reference, ids in ((only, kept), (chosen, scores), (chosen, kept))
        )
    assert all_answers == of_kept == alone
    assert all_answers[f"{CHEST}/image_to_report/ROUGE-L (coco)"].n == 5
    with pytest.raises(ValueError, match=rf"1 of the 5 kept reports were not answered \(first {min(kept)}\)"):
        chosen.held_against(answers(whole, set(scores) - {min(kept)}))
    with pytest.raises(ValueError, match="answered twice"):
        chosen.held_against([*answers(whole, kept), *answers(whole, kept)])


def test_no_answer_is_missing_and_none_counts_twice(chest):
    _, _, whole = chest
    ids = [pair.pair_id for pair in whole.test]
    every = answers(whole, ids)
    assert whole.held_against(every) == whole.asked(every) == every
    assert whole.asked(every[:5]) == every[:5] and whole.asked(every[4::-1]) == every[4::-1]
    for wrong in (every[1:], [*every[:4], every[0]], [*every[:4], replace(every[4], pair_id="x")]):
        with pytest.raises(ValueError, match=rf"{CHEST}: {len(wrong)} answers are not one to each of its first"):
            whole.asked(wrong)
    with pytest.raises(ValueError, match=rf"first without one: {ids[0]}"):
        whole.held_against(every[1:])


def test_nothing_is_filtered_where_no_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro filter_reports"):
        kept_ids(tmp_path)
    write_manifest({}, tmp_path)
    assert kept_ids(tmp_path) == {} and filter_notes(tmp_path) == []


def test_real_reports_need_a_judge_that_reads_them(tmp_path):
    write_pairs(tmp_path / "test.parquet", pairs(2))
    real = Reference("pathgen", tmp_path / "test.parquet", tmp_path / "test.parquet", certain_reader())
    with pytest.raises(ValueError, match=r"pathgen is not drawn.*params.yaml:filter_reports.judge"):
        judge_of(None, real)
