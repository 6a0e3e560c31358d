"""Prompts: the cross product, the prompts that the domains really make, and how often each is asked."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.data import get_domain
from medim.data.splits import drawn_pairs
from medim.pairs import write_pairs
from medim.synthesis_prompts import (
    PromptGroup,
    PromptWords,
    asked_prompts,
    check_prompts,
    grammar_prompts,
    prompts_of,
    training_prompts,
)

CHEST = PromptWords(
    "chest x-ray",
    ", ",
    (
        PromptGroup(("left lung", "right lung"), ("nodule", "effusion")),
        PromptGroup(("",), ("", "normal", "edema")),
    ),
)
TISSUE = PromptWords("histology", " of the ", (PromptGroup(("colon", "skin"), ("", "necrosis")),))


def test_prompts_are_every_region_with_every_condition():
    assert prompts_of(CHEST) == [
        "chest x-ray, left lung, nodule", "chest x-ray, left lung, effusion", "chest x-ray, right lung, nodule",
        "chest x-ray, right lung, effusion", "chest x-ray", "chest x-ray, normal", "chest x-ray, edema",
    ]  # fmt: skip
    assert prompts_of(TISSUE) == [
        "histology of the colon", "histology of the colon, necrosis", "histology of the skin",
        "histology of the skin, necrosis",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "named"),
    [((), "twice: \\[\\]"), ((PromptGroup(("", ""), ("x",)),), "m, x"), ((PromptGroup(("a:b",), ("",)),), "m, a:b")],
)
def test_a_set_of_prompts_that_cannot_be_asked_is_refused(groups, named):
    with pytest.raises(ValueError, match=named):
        prompts_of(PromptWords("m", ", ", groups))


@pytest.mark.parametrize(("dataset", "count"), [("phantom_cxr", 2 + 4 + 2 * 6), ("phantom_pathology", 9 * (1 + 10))])
def test_the_grammars_prompts_are_all_there_are(dataset, count):
    """Chest: bare, normal, 4 findings without side, 6 with two; tissue: 9 organs, bare or with one of 10 findings."""
    found, domain = grammar_prompts(dataset), get_domain(dataset)
    assert len(found) == count
    assert {domain.prompt(scene) for p in range(5000, 5200) for scene in domain.studies(7, p)} <= found


def test_a_prompt_that_no_pair_begins_with_is_refused():
    check_prompts("phantom_cxr", prompts_of(CHEST), ())
    check_prompts("phantom_pathology", prompts_of(TISSUE), ())
    with pytest.raises(
        ValueError, match=r"'chest x-ray, left lung, edema'.* nearest prompt is 'chest x-ray, .*prompts"
    ):
        check_prompts("phantom_cxr", ["chest x-ray", "chest x-ray, left lung, edema"], ())
    check_prompts("mine", ["knee"], ["knee"])
    with pytest.raises(ValueError, match="'hip', the nearest prompt is 'knee'"):
        check_prompts("mine", ["knee", "hip"], ["knee"])


def test_training_prompts_are_counted(tmp_path):
    pairs = list(drawn_pairs("phantom_cxr", "train", 0, 40, 32))
    write_pairs(tmp_path / "train.parquet", pairs, group_rows=7)
    assert training_prompts(tmp_path / "train.parquet") == Counter(pair.prompt for pair in pairs)
    with pytest.raises(FileNotFoundError, match="dvc repro prepare_data"):
        training_prompts(tmp_path / "none.parquet")


def test_equal_prompts_take_turns():
    assert asked_prompts(["a", "b", "c"], "equal", {}, 7) == list("abcabca")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(1, 300))
def test_every_beginning_has_the_training_frequencies(times, count):
    names = [f"p{k}" for k in range(len(times))]
    asked = asked_prompts(names, "training", dict(zip(names, times, strict=True)), count)
    share = np.array(times) / sum(times)
    given_so_far = np.cumsum([[name == one for name in names] for one in asked], axis=0)
    ahead = given_so_far - share * np.arange(1, count + 1)[:, None]
    assert ahead.max() < 1
    assert (given_so_far[-1][share == 0] == 0).all()
    assert abs(given_so_far[-1] / count - share).max() < 4 / count


def test_frequencies_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match="'often'"):
        asked_prompts(["a"], "often", {}, 1)
    with pytest.raises(ValueError, match="begins a training pair: set frequency to equal"):
        asked_prompts(["a"], "training", {"b": 3}, 1)
