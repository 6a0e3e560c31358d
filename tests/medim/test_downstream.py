"""Mixes: which pairs a training sees, counted and compared by id; and a writer trained on real and synthetic pairs."""

import json
from dataclasses import replace

import pytest
from certain_reader import certain_reader
from redrawing import Redrawing

from medim.data.splits import drawn_pairs
from medim.downstream import Mix, Pool, overlaid, read_mix, study_settings, write_mix
from medim.evaluation import Reference
from medim.pairs import read_pairs, write_pairs
from medim.synthesis import Origin, PairScorer, SynthesisSettings, synthesize, write_held_out
from medim.synthesis_filters import PairFilter, read_scores

DATASETS = ("phantom_cxr", "phantom_pathology")
REAL = Mix(Pool(1.0, {}), None, 0.0, None, 0)
TWICE = replace(REAL, pairs=Pool(2.0, {}))
BOTH = replace(REAL, pairs=Pool(1.0, {"redrawing": 1.0}))
ORDERED = replace(REAL, first=Pool(0.0, {"redrawing": 1.0}), first_share=0.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Real files of two domains, and 12 synthetic pairs of each."""
    folder, reader = tmp_path_factory.mktemp("world"), certain_reader("edema")
    files = {name: {s: folder / name / f"{s}.parquet" for s in ("train", "val", "test")} for name in DATASETS}
    held_out = {}
    for name, splits in files.items():
        for split, path in splits.items():
            write_pairs(path, drawn_pairs(name, split, 0, 25 if split == "train" else 6, 32))
        reference = Reference(
            f"{name}-as-imported" if name == DATASETS[1] else name, splits["val"], splits["train"], reader
        )
        scorer = PairScorer(reference, splits["train"])
        origin, settings = Origin("redrawing", "abc", name, 0), SynthesisSettings(12, 8, 4, "equal", 0)
        out = folder / "redrawing" / f"{name}.parquet"
        synthesize(Redrawing(name), ["x"] * 12, scorer, origin, settings, folder / "work", out)
        held_out[name] = scorer.held_out()
    write_held_out(folder / "redrawing", held_out)
    return {name: splits["train"] for name, splits in files.items()}, {"redrawing": folder / "redrawing"}


def written(mix, pairs, real, synthetic, seed, folder):
    number = write_mix(mix, pairs, real, synthetic, seed, folder)
    files = read_mix(folder)
    assert list(files.train) == list(real) and files.seed_offset == mix.seed_offset
    assert number == sum(sum(of_source.values()) for of_source in files.counts.values())
    return files


def ids(files, dataset):
    return [pair.pair_id for pair in read_pairs(files.train[dataset])]


def test_every_domain_has_as_many_pairs_of_every_source(world, tmp_path):
    real, synthetic = world
    files = written(BOTH, 10, real, synthetic, 0, tmp_path)
    assert files.counts == {name: {"real": 10, "redrawing": 10} for name in DATASETS} and files.order is None
    for name in DATASETS:
        found = read_pairs(files.train[name])
        assert sum(pair.source.startswith("redrawing") for pair in found) == 10 == len(found) - 10
        assert len({pair.pair_id for pair in found}) == 20
        known = {pair.pair_id: pair for pair in read_pairs(real[name])}
        assert all(known[pair.pair_id] == pair for pair in found if not pair.source.startswith("redrawing"))
    page = json.loads((tmp_path / "mix.json").read_text())
    assert page["counts"] == files.counts and page["mix"]["pairs"] == {"real": 1.0, "synthetic": {"redrawing": 1.0}}


def test_twice_the_real_are_the_real_and_as_many_that_the_real_mix_does_not_use(world, tmp_path):
    real, synthetic = world
    one, two = (written(mix, 10, real, synthetic, 4, tmp_path / str(n)) for n, mix in enumerate((REAL, TWICE)))
    both = written(BOTH, 10, real, synthetic, 4, tmp_path / "both")
    tenth = written(replace(REAL, pairs=Pool(0.3, {})), 10, real, synthetic, 4, tmp_path / "tenth")
    for name in DATASETS:
        first, second = set(ids(one, name)), set(ids(two, name))
        assert len(first) == 10 and len(second) == 20 and first < second and first < set(ids(both, name))
        assert len(ids(tenth, name)) == 3 and set(ids(tenth, name)) < first
    other = written(REAL, 10, real, synthetic, 5, tmp_path / "other")
    assert set(ids(other, DATASETS[0])) != set(ids(one, DATASETS[0]))


def test_synthetic_first_then_real_is_one_file_with_an_order(world, tmp_path):
    real, synthetic = world
    files = written(ORDERED, 10, real, synthetic, 0, tmp_path)
    assert files.order.first_share == 0.5 and files.order.first_pairs == dict.fromkeys(DATASETS, 10)
    found = read_pairs(files.train[DATASETS[0]])
    assert [pair.source.startswith("redrawing") for pair in found] == [True] * 10 + [False] * 10
    again = replace(ORDERED, first=Pool(1.0, {}))  # the same real pairs in both parts: two names for each
    found = ids(written(again, 10, real, synthetic, 0, tmp_path / "again"), DATASETS[0])
    assert len(set(found)) == 20 and found[10:] == [f"{name}-2" for name in found[:10]]


def test_only_pairs_that_pass_the_filter_are_taken(world, tmp_path):
    real, synthetic = world
    chest = {DATASETS[0]: real[DATASETS[0]]}
    scores = read_scores(synthetic["redrawing"] / f"{DATASETS[0]}.parquet")
    passing = [n for n, score in enumerate(scores["alignment"]) if score >= 0.5]
    assert 0 < len(passing) < 12
    asked = replace(BOTH, pairs=Pool(0.0, {"redrawing": 1.0}), filter=PairFilter(0.5, None, None))
    files = written(asked, len(passing), chest, synthetic, 0, tmp_path)
    assert ids(files, DATASETS[0]) == [f"phantom_cxr-redrawing-{n:07d}" for n in passing]
    with pytest.raises(ValueError, match=f"needs 12 pairs of phantom_cxr from redrawing, there are {len(passing)}"):
        write_mix(asked, 12, chest, synthetic, 0, tmp_path)
    with pytest.raises(ValueError, match="filter by alignment needs it of every pair, 12 of 12 have none"):
        write_mix(asked, 5, {DATASETS[1]: real[DATASETS[1]]}, synthetic, 0, tmp_path)  # nothing judges this one


def test_pairs_of_another_generator_change_no_byte(world, tmp_path):
    real, synthetic = world
    for folder, generators in (("before", synthetic), ("after", synthetic | {"other": tmp_path})):
        for arm, mix in (("real", REAL), ("both", BOTH)):
            write_mix(mix, 10, real, generators, 0, tmp_path / folder / arm)
    before, after = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.*"))}
        for folder in ("before", "after")
    )
    assert len(before) == 6 and before == after


def test_what_cannot_be_mixed_is_named(world, tmp_path):
    real, synthetic = world
    with pytest.raises(ValueError, match=r"needs 26 pairs of phantom_cxr from the real training pairs, there are 25"):
        write_mix(TWICE, 13, real, synthetic, 0, tmp_path)
    with pytest.raises(KeyError, match="no generator 'redrawing'"):
        write_mix(BOTH, 5, real, {}, 0, tmp_path)
    with pytest.raises(ValueError, match="nothing is left"):
        write_mix(replace(REAL, pairs=Pool(0.01, {})), 10, real, synthetic, 0, tmp_path)
    with pytest.raises(FileNotFoundError, match="dvc repro mix_pairs"):
        read_mix(tmp_path / "none")
    with pytest.raises(ValueError, match="first_share must be 0 without"):
        replace(REAL, first_share=0.5)
    with pytest.raises(ValueError, match="a mix needs pairs"):
        replace(REAL, pairs=Pool(0.0, {}))


def test_settings_of_the_study_lie_over_those_of_the_method():
    base = {"optim": {"steps": 10, "lr": 0.1}, "beams": 3}
    assert overlaid(base, {"optim": {"steps": 4}}, "x") == {"optim": {"steps": 4, "lr": 0.1}, "beams": 3}
    assert base["optim"]["steps"] == 10
    with pytest.raises(KeyError, match=r"x\.optim has no 'step'"):
        overlaid(base, {"optim": {"step": 4}}, "x")


@pytest.mark.parametrize("change", [{"start": "a"}, {"pretraining": None}, {"words": {"vocabulary": 9}}])
def test_an_arm_cannot_change_what_its_prior_has_settled(change):
    usual = {"pretraining": {"datasets": ["a"]}, "start": None, "words": {"vocabulary": 8, "max_tokens": 4}}
    assert study_settings(usual, {"words": {"max_tokens": 6}}, "bllm")["words"] == {"vocabulary": 8, "max_tokens": 6}
    with pytest.raises(ValueError, match=r"train_downstream.changes.bllm changes .*prior of models/bllm"):
        study_settings(usual, change, "bllm")
    alone = usual | {"pretraining": None}
    assert study_settings(alone, change, "bllm") == overlaid(alone, change, "x")
