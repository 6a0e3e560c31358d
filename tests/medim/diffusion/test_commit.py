"""Commit rules against loops written from the papers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from medim.diffusion.commit import num_confident, select_top


def by_loop(rule, confidence, level):
    """The definitions, read aloud."""
    c = sorted(confidence, reverse=True)
    best = min(1, len(c))
    for n in range(1, len(c) + 1):
        if rule == "threshold":
            good = c[n - 1] >= level
        elif rule == "factor":
            good = (n + 1) * (1 - c[n - 1]) < level
        else:
            good = sum(c[:n]) - (n - 1) - (1 - c[n - 1]) > level
        if good:
            best = max(best, n)
    return best


@given(
    st.sampled_from([("threshold", 0.9), ("factor", 1.0), ("factor", 0.6), ("profile", 0.0), ("profile", 0.2)]),
    st.lists(st.sampled_from([0.0, 0.2, 0.55, 0.7, 0.91, 0.97, 0.999, 1.0]), min_size=1, max_size=12),
    st.integers(0, 4095),
)
@given_settings(max_examples=200, deadline=None)
def test_adaptive_rules_follow_their_definition(rule, values, bits):
    eligible = torch.tensor([[bool(bits >> i & 1) for i in range(len(values))]])
    confidence = torch.tensor([values], dtype=torch.float64)
    chosen = [v for v, e in zip(values, eligible[0].tolist(), strict=True) if e]
    assert int(num_confident(rule[0], confidence, eligible, rule[1])) == by_loop(rule[0], chosen, rule[1])


def test_factor_cuts_in_where_the_paper_says():
    """f = 1: c > .5 for one token, c > .9 for nine."""
    all_ = torch.ones(1, 9, dtype=torch.bool)
    assert int(num_confident("factor", torch.full((1, 9), 0.901).double(), all_, 1.0)) == 9
    assert int(num_confident("factor", torch.full((1, 9), 0.899).double(), all_, 1.0)) == 8


def test_profile_equals_factor_for_equal_confidences():
    """sum - (n - 1) - (1 - c) > 0 is n c - n + c > 0, which is (n + 1)(1 - c) < 1."""
    for c in (0.3, 0.6, 0.8, 0.95):
        confidence, all_ = torch.full((1, 30), c).double(), torch.ones(1, 30, dtype=torch.bool)
        assert int(num_confident("profile", confidence, all_, 0.0)) == int(
            num_confident("factor", confidence, all_, 1.0)
        )


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'best'"):
        num_confident("best", torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), 0.5)


@given(st.integers(0, 10**6))
@given_settings(max_examples=50, deadline=None)
def test_selection_takes_exactly_the_best_eligible(seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (3, 7), generator=g).double()
    scores[scores == 0] = -math.inf
    eligible = torch.rand(3, 7, generator=g) < 0.6
    num = torch.randint(0, 9, (3,), generator=g)
    picked = select_top(scores, eligible, num)
    assert not (picked & ~eligible).any()
    assert torch.equal(picked.sum(1), num.minimum(eligible.sum(1)))
    for row in range(3):
        rest = eligible[row] & ~picked[row]
        if picked[row].any() and rest.any():
            assert float(scores[row][picked[row]].min()) >= float(scores[row][rest].max())
