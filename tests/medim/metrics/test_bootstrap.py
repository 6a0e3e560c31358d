import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.metrics import bootstrap as module
from medim.metrics.bootstrap import (
    Estimate,
    bootstrap,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_sums,
    bootstrap_two,
    not_measured,
)


def test_interval_of_a_mean_is_the_normal_one():
    n, rng = 2000, np.random.default_rng(0)
    values = rng.normal(3, 2, n)
    got = bootstrap_mean(values, seed=1, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(n)
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.06 * half)
    assert got.n == n


def test_interval_covers_the_truth_in_about_95_percent():
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(400):
        got = bootstrap_mean(rng.normal(0, 1, 60), seed=trial, resamples=300)
        inside += got.low <= 0 <= got.high
    assert 0.91 <= inside / 400 <= 0.975  # 0.942 expected at n = 60, standard error 0.011


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.integers(0, 5))
def test_sums_and_indices_use_the_same_draws(values, seed):
    column = np.array(values)
    by_index = bootstrap(lambda index: column[index].mean(axis=1), len(column), seed, 50)
    by_sums = bootstrap_mean(column, seed, 50)
    np.testing.assert_allclose(by_index, by_sums, atol=1e-12)


def test_same_seed_same_interval_whatever_the_block_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=37)
    whole = bootstrap_mean(values, 3, 200)
    monkeypatch.setattr(module, "BLOCK_CELLS", 100)
    np.testing.assert_allclose(bootstrap_mean(values, 3, 200), whole, rtol=1e-12)
    assert bootstrap_mean(values, 4, 200) != whole


def test_n_travels_and_nothing_is_not_measured():
    assert bootstrap_mean([], 0, 10) == not_measured(0) == Estimate(None, None, None, 0)
    assert bootstrap_mean([0.25], 0, 10) == Estimate(0.25, None, None, 1)  # no interval from one example
    assert bootstrap_mean([0.25] * 7, 0, 10) == Estimate(0.25, 0.25, 0.25, 7)


def test_ratio_is_of_sums_and_draws_both_together():
    above, below = np.array([1.0, 4.0, 9.0]), np.array([2.0, 8.0, 18.0])
    assert bootstrap_ratio(above, below, 0, 100) == Estimate(0.5, 0.5, 0.5, 3)
    assert bootstrap_ratio([1, 2], [0, 0], 0, 10) == not_measured(2)


def test_undefined_draws_are_left_out():
    got = bootstrap_ratio([1.0, 0.0], [1.0, 0.0], 0, 200)  # a quarter of the draws holds the second example only
    assert got == Estimate(1.0, 1.0, 1.0, 2)


def test_paired_difference_of_a_constant_shift_has_no_width():
    values = np.random.default_rng(0).normal(size=50)
    got = bootstrap_difference(values + 0.5, values, 0, 100)
    np.testing.assert_allclose(got, (0.5, 0.5, 0.5, 50))
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        bootstrap_difference([1, 2, 3], [1, 2], 0, 10)


def test_two_samples_are_drawn_by_themselves():
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 1, 900), rng.normal(0, 2, 400)
    got = bootstrap_two(first, second, lambda a, b: a.mean(axis=1) - b.mean(axis=1), 0, 3000)
    half = 1.96 * np.sqrt(first.var() / 900 + second.var() / 400)
    assert got.high - got.low == pytest.approx(2 * half, rel=0.06)
    assert got.n == 900
    assert bootstrap_two(first, [], lambda a, b: a, 0, 10) == not_measured(900)


def test_several_statistics_at_once():
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    got = bootstrap_sums(rows, lambda sums: np.stack([sums[:, 0], sums.sum(axis=1)], 1), 0, 50)
    assert [one.value for one in got] == [4.0, 10.0]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="resamples = 0"):
        bootstrap_mean([1.0], 0, 0)
    with pytest.raises(ValueError, match="at least one example"):
        bootstrap_sums(np.zeros((0, 3)), lambda sums: sums, 0, 10)
