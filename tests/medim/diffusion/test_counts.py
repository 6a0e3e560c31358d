"""Plans: sums, floors, the official numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from medim.diffusion.counts import SCHEDULE_NAMES, spread, token_counts


@given(st.sampled_from(SCHEDULE_NAMES), st.integers(0, 300), st.integers(1, 140), st.sampled_from([0.1, 1 / 3, 1, 3]))
@given_settings(max_examples=300, deadline=None)
def test_plans_sum_to_n_with_at_least_one_token_a_step(schedule, total, steps, shift):
    counts = token_counts(schedule, total, steps, shift)
    assert counts.sum() == total
    assert (counts >= 1).all()
    assert len(counts) <= min(steps, total)
    if schedule != "arccos":
        assert len(counts) == min(steps, total)


def test_arccos_gives_the_official_counts():
    """1280 tokens in 128 steps: what `adap_sche` of UCSC-VLAA/MeDiM gives at both ends."""
    counts = token_counts("arccos", 1280, 128, 1.0).tolist()
    assert counts[:6] == [1, 1, 2, 2, 3, 3]
    assert counts[-4:] == [16, 16, 16, 12]


def test_arccos_never_allots_more_than_there_are():
    """256 in 128: the official rounding allots 260."""
    assert token_counts("arccos", 256, 128, 1.0).sum() == 256


def test_linear_and_cosine_by_hand():
    assert token_counts("linear", 12, 4, 1.0).tolist() == [3, 3, 3, 3]
    known = np.cumsum(token_counts("cosine", 1000, 4, 1.0))
    np.testing.assert_allclose(known, 1000 * (1 - np.cos(np.pi / 2 * np.arange(1, 5) / 4)), atol=1)


def test_a_shift_below_one_fills_early_and_one_is_linear():
    assert token_counts("shift", 40, 8, 1.0).tolist() == token_counts("linear", 40, 8, 1.0).tolist()
    early = token_counts("shift", 40, 2, 1 / 3)
    assert early.tolist() == [30, 10]  # t' = (1/3)(1/2) / (1 - (2/3)(1/2)) = 1/4 still masked half-way
    assert token_counts("shift", 40, 2, 3.0).tolist() == [10, 30]


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match=r"'cos'.*arccos, linear, cosine"):
        token_counts("cos", 4, 2, 1.0)
    with pytest.raises(ValueError, match="steps >= 1"):
        token_counts("linear", 4, 0, 1.0)


@given(st.integers(1, 20), st.integers(0, 30), st.sampled_from([0.0, 0.25, 0.9]))
@given_settings(max_examples=100, deadline=None)
def test_spreading_keeps_the_sum_and_ends_last(steps, more, lead):
    counts = np.arange(1, steps + 1)
    out = spread(counts, steps + more, lead)
    assert out.sum() == counts.sum()
    assert out[-1] > 0
    assert not out[: int(lead * (steps + more))].any()
