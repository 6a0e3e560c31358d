"""Left and right exchanged, and how often the true report wins: against counts by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medim.metrics.sides import auroc, exchange_sides, side_scores

PROSE = st.lists(
    st.sampled_from(
        ["left", "Right", "LEFT", "right", "lEFT", "leftward", "bright", "left-sided", "lung", ".", " ", "_"]
    )
).map("".join)
SCORES = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12)


@given(st.one_of(PROSE, st.text()))
def test_two_exchanges_are_none(text):
    assert exchange_sides(exchange_sides(text)) == text
    assert len(exchange_sides(text).split()) == len(text.split())


def test_only_whole_words_are_exchanged_and_keep_their_case():
    text = "x-ray, left lung: Right-sided effusion, brightest LEFT of the leftover; lEFT stays. right"
    assert exchange_sides(text) == (
        "x-ray, right lung: Left-sided effusion, brightest RIGHT of the leftover; lEFT stays. left"
    )


@given(SCORES)
def test_auroc_is_the_share_of_won_comparisons_with_ties_half(scores):
    true, exchanged = zip(*scores, strict=True)
    won = sum((t > e) + 0.5 * (t == e) for t in true for e in exchanged)
    found = auroc(true, exchanged, 0, 5)
    assert found.value == pytest.approx(won / len(scores) ** 2)
    assert found.n == len(scores)


def test_auroc_agrees_with_the_rank_sum():
    rng = np.random.default_rng(0)
    true, exchanged = rng.normal(1, 1, 60), rng.normal(0, 1, 60)
    ranks = np.concatenate([true, exchanged]).argsort().argsort() + 1
    u = ranks[:60].sum() - 60 * 61 / 2
    found = auroc(true.tolist(), exchanged.tolist(), 0, 200)
    assert found.value == pytest.approx(u / 3600)
    assert found.low < found.value < found.high


def test_pairs_are_drawn_with_both_of_their_scores():
    """Every pair is decided by itself, but pooled the pairs overlap: 1 of 2 pairs drawn twice is always right."""
    found = side_scores([1.0, 3.0], [0.0, 2.0], 4, 0, 100)
    assert found["side_pair_accuracy"][:3] == (1.0, 1.0, 1.0)
    assert found["side_auroc"].value == 0.75  # 1 is below 2
    assert found["side_auroc"].high == 1.0
    assert (found["pairs_with_side"].value, found["pairs_with_side"].n) == (0.5, 4)
    assert found["side_auroc"].n == found["side_pair_accuracy"].n == 2


def test_no_pair_with_a_side_is_not_measured():
    found = side_scores([], [], 3, 0, 10)
    assert found["side_auroc"] == found["side_pair_accuracy"] == (None, None, None, 0)
    assert (found["pairs_with_side"].value, found["pairs_with_side"].n) == (0.0, 3)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        side_scores([float("nan")], [0.0], 1, 0, 10)
    with pytest.raises(ValueError, match="1 true and 2 exchanged"):
        side_scores([0.0], [0.0, 1.0], 2, 0, 10)
