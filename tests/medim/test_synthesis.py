"""Synthetic pairs: what the generator makes with the seeds it is given, scored as by hand, resumable by shard."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_medim as tiny
from certain_reader import certain_reader
from redrawing import Redrawing

from medim.data.splits import drawn_pairs
from medim.evaluation import Reference
from medim.generation import sample_seed
from medim.metrics.alignment import PhantomJudge
from medim.metrics.finding_reader import features
from medim.pairs import decode_png, full_text, iter_pairs, load_images, read_pairs, write_pairs
from medim.questions import Questions
from medim.synthesis import (
    TASK,
    Origin,
    PairScorer,
    SynthesisSettings,
    pair_generator,
    read_held_out,
    synthesize,
    write_held_out,
)

SETTINGS = SynthesisSettings(pairs=6, shard=4, chunk=3, frequency="equal", pmi_masks=0)
ORIGIN = Origin("medim", "abc", "phantom_cxr", 3)
ASKED = ["chest x-ray", "histology"] * 3  # the tiny tokenizer knows these words


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    for split, count in (("train", 30), ("val", 12)):
        write_pairs(folder / f"{split}.parquet", drawn_pairs("phantom_cxr", split, 0, count, 32), group_rows=8)
    reader = certain_reader("edema")
    reference = Reference("phantom_cxr", folder / "val.parquet", folder / "train.parquet", reader)
    return PairScorer(reference, folder / "train.parquet")


@pytest.fixture(scope="module")
def questions():
    return Questions(tiny.medim(), tiny.vqgan(), tiny.SAMPLER)


def rows(path):
    return pq.read_table(path).to_pylist()


def test_a_pair_is_what_the_model_makes_of_its_prompt_with_its_seed(questions, scorer, tmp_path):
    out = tmp_path / "pairs.parquet"
    assert synthesize(questions, ASKED, scorer, ORIGIN, SETTINGS, tmp_path / "work", out) == 6
    found = rows(out)
    seeds = [sample_seed(3, TASK, "phantom_cxr", number) for number in range(6)]
    alone = questions.prompted(ASKED, seeds)
    assert [row["seed"] for row in found] == seeds
    assert [row["asked"] for row in found] == ASKED == [row["prompt"] for row in found]
    assert [row["report"] for row in found] == alone.reports
    assert [row["evaluations"] for row in found] == alone.evaluations
    np.testing.assert_array_equal(np.stack([decode_png(row["image"]) for row in found]), alone.images)
    assert {(row["generator"], row["model_hash"], row["dataset"]) for row in found} == {("medim", "abc", "phantom_cxr")}
    assert len({row["pair_id"] for row in found} | {row["patient_id"] for row in found}) == 6
    assert {(row["findings"], row["scene"], row["masks"], row["pmi"]) for row in found} == {(None,) * 4}


def test_scores_are_those_of_the_judge_and_of_all_distances(questions, scorer, tmp_path):
    synthesize(questions, ASKED, scorer, ORIGIN, SETTINGS, tmp_path / "work", tmp_path / "pairs.parquet")
    found = rows(tmp_path / "pairs.parquet")
    reference, images = scorer.reference, np.stack([decode_png(row["image"]) for row in found])
    judge = PhantomJudge(reference.domain.grammar, reference.read_images, reference.labels)
    expected = judge.scores(images, [row["report"] for row in found])
    np.testing.assert_allclose([row["alignment"] for row in found], expected)
    train = reference.train
    mine, theirs = features(reference.reader, images), features(reference.reader, load_images(train))
    every = np.linalg.norm(mine[:, None].astype(float) - theirs[None], axis=-1)
    np.testing.assert_allclose([row["nearest"] for row in found], every.min(1), atol=1e-6)
    ids = [pair.pair_id for pair in train]
    at_them = [every[i, ids.index(row["nearest_pair"])] for i, row in enumerate(found)]
    np.testing.assert_allclose(at_them, every.min(1), atol=1e-6)


def test_a_pair_is_faithful_if_both_halves_have_the_same_findings(scorer):
    pair = next(iter(scorer.reference.test))
    images = np.stack([decode_png(pair.image)] * 4)
    reports = ["pulmonary edema.", "possible pulmonary edema.", "", "pulmonary edema. there is cardiomegaly."]
    got = scorer.scores(images, reports)  # the reader sees edema and nothing else in every picture
    assert got.faithful.tolist() == [True, False, False, False]
    np.testing.assert_allclose(got.alignment, [1, 2 / 3, 0, 2 / 3])


def test_a_killed_run_goes_on_with_its_next_shard_and_ends_with_the_same_bytes(scorer, tmp_path):
    asked, settings = ["chest x-ray"] * 11, replace(SETTINGS, shard=4, chunk=2)
    whole, dying, again = (Redrawing("phantom_cxr", lives=lives) for lives in (99, 3, 99))
    synthesize(whole, asked, scorer, ORIGIN, settings, tmp_path / "w1", tmp_path / "whole.parquet")
    with pytest.raises(RuntimeError, match="killed"):
        synthesize(dying, asked, scorer, ORIGIN, settings, tmp_path / "w2", tmp_path / "cut.parquet")
    assert not (tmp_path / "cut.parquet").exists()
    synthesize(again, asked, scorer, ORIGIN, settings, tmp_path / "w2", tmp_path / "cut.parquet")
    assert whole.asked == [2, 2, 2, 2, 2, 1] and again.asked == [2, 2, 2, 1]  # the half shard is asked anew
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_shards_and_chunks_matter_to_a_pair_by_rounding_only(questions, scorer, tmp_path):
    for name, shard, chunk in (("one", 6, 6), ("many", 2, 1)):
        settings = replace(SETTINGS, shard=shard, chunk=chunk)
        synthesize(questions, ASKED, scorer, ORIGIN, settings, tmp_path / name, tmp_path / f"{name}.parquet")
    one, many = (list(iter_pairs(tmp_path / f"{name}.parquet")) for name in ("one", "many"))
    assert [vars(pair) | {"image": b""} for pair in one] == [vars(pair) | {"image": b""} for pair in many]
    assert np.abs(load_images(one).astype(int) - load_images(many)).max() <= 1


def test_a_file_of_synthetic_pairs_is_read_like_one_of_real_ones(scorer, tmp_path):
    synthesize(Redrawing("phantom_cxr"), ASKED, scorer, ORIGIN, SETTINGS, tmp_path / "w", tmp_path / "pairs.parquet")
    pairs = read_pairs(tmp_path / "pairs.parquet")
    assert [pair.prompt for pair in pairs] == ASKED and load_images(pairs).shape == (6, 32, 32, 3)


def test_pmi_is_what_the_picture_adds_to_the_reports_probability(questions, scorer, tmp_path):
    settings = replace(SETTINGS, pmi_masks=4)
    synthesize(questions, ASKED, scorer, ORIGIN, settings, tmp_path / "w", tmp_path / "pairs.parquet")
    found = rows(tmp_path / "pairs.parquet")
    texts = [full_text(row["prompt"], row["report"]) for row in found]
    seeds, images = [row["seed"] for row in found], np.stack([decode_png(row["image"]) for row in found])
    given, alone = (questions.report_log_p(texts, shown, seeds, 4, 64) for shown in (images, None))
    np.testing.assert_allclose([row["pmi"] for row in found], given - alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match=r"Redrawing gives no probabilities.*pmi_masks to 0"):
        synthesize(Redrawing("phantom_cxr"), ASKED, scorer, ORIGIN, settings, tmp_path / "x", tmp_path / "no.parquet")


def test_pairs_of_an_imported_dataset_have_no_judge(scorer, tmp_path):
    real = scorer.reference.train_file
    mine = Reference("mine", real, real, scorer.reference.reader)
    origin = replace(ORIGIN, dataset="mine")
    unjudged = PairScorer(mine, real)
    synthesize(Redrawing("phantom_cxr"), ASKED, unjudged, origin, SETTINGS, tmp_path / "w", tmp_path / "out.parquet")
    found = rows(tmp_path / "out.parquet")
    assert {(row["alignment"], row["judge"], row["faithful"]) for row in found} == {(None, None, None)}
    assert all(row["nearest"] >= 0 for row in rows(tmp_path / "out.parquet"))


def test_real_held_out_pairs_are_scored_too(scorer, tmp_path):
    write_held_out(tmp_path, {"phantom_cxr": scorer.held_out()})
    found = read_held_out(tmp_path, "phantom_cxr")
    test = scorer.reference.test
    again = scorer.scores(load_images(test), [pair.report for pair in test])
    np.testing.assert_allclose(found["nearest"], again.nearest)
    np.testing.assert_array_equal(found["faithful"], again.faithful)
    with pytest.raises(KeyError, match="no dataset 'other'"):
        read_held_out(tmp_path, "other")
    with pytest.raises(FileNotFoundError, match="dvc repro synthesize_pairs@nothing"):
        read_held_out(tmp_path / "nothing", "phantom_cxr")


def test_what_makes_no_pairs_from_prompts_is_named(questions):
    assert pair_generator(questions, "medim") is questions
    with pytest.raises(TypeError, match=r"trivial .*has no `prompted`"):
        pair_generator(object(), "trivial")
    with pytest.raises(ValueError, match="shard must be at least 1, got 0"):
        replace(SETTINGS, shard=0)
