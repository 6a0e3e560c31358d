"""Paired gains against plain loops, closed forms, and intervals that are as wide as they should be."""

import numpy as np
import pytest

from medim.metrics import bootstrap as bootstrap_module
from medim.metrics.bootstrap import LEVEL, bootstrap_mean
from medim.metrics.gains import SumMetrics, paired_gains
from medim.metrics.report_sums import joined, means, ratio

RNG = np.random.default_rng(0)


def mean_of(values) -> SumMetrics:
    return means({"m": values})


def test_a_plain_loop_over_the_same_draws_gives_the_same_interval():
    n, seeds, resamples = 23, 3, 200
    of, over = RNG.uniform(0.5, 1, (seeds, n)), RNG.uniform(0.2, 0.8, (seeds, n))
    got = paired_gains([mean_of(v) for v in of], [mean_of(v) for v in over], 7, resamples)["m"]
    pairs, which = np.random.default_rng((7, 0)), np.random.default_rng((7, 1))
    index, chosen = pairs.integers(0, n, (resamples, n)), which.integers(0, seeds, (resamples, seeds))
    relative, absolute = [], []
    for rows, picked in zip(index, chosen, strict=True):
        a = np.mean([of[s][rows].mean() for s in picked])
        b = np.mean([over[s][rows].mean() for s in picked])
        relative.append(100 * (a / b - 1))
        absolute.append(a - b)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    assert got.relative.value == pytest.approx(100 * (of.mean() / over.mean() - 1))
    np.testing.assert_allclose(got.relative[1:3], np.quantile(relative, ends))
    np.testing.assert_allclose(got.absolute[:3], [of.mean() - over.mean(), *np.quantile(absolute, ends)])
    assert got.relative.n == got.absolute.n == n


def test_one_seed_and_a_mean_is_the_paired_bootstrap():
    of, over = RNG.normal(1, 1, 80), RNG.normal(0.5, 1, 80)
    got = paired_gains([mean_of(of)], [mean_of(over)], 3, 4000)["m"].absolute
    plain = bootstrap_mean(of - over, 5, 4000)
    assert got.value == pytest.approx(plain.value)
    assert got.high - got.low == pytest.approx(plain.high - plain.low, rel=0.05)


def test_what_both_share_cancels():
    hard = RNG.uniform(0, 1, 60)
    got = paired_gains([mean_of(hard + 0.1)] * 2, [mean_of(hard)] * 2, 0, 300)["m"].absolute
    np.testing.assert_allclose(got[:3], 0.1)
    lucky = paired_gains([mean_of(hard + k + 0.1) for k in (0, 5)], [mean_of(hard + k) for k in (0, 5)], 0, 300)["m"]
    np.testing.assert_allclose(lucky.absolute[:3], 0.1)
    constant = paired_gains([mean_of(1.5 * hard)], [mean_of(hard)], 0, 300)["m"].relative
    np.testing.assert_allclose(constant[:3], 50)


def test_seeds_that_differ_widen_the_interval():
    base = RNG.uniform(0.4, 0.6, 200)
    same = paired_gains([mean_of(base + 0.1)] * 2, [mean_of(base)] * 2, 0, 1000)["m"].absolute
    apart = paired_gains([mean_of(base), mean_of(base + 0.2)], [mean_of(base)] * 2, 0, 1000)["m"].absolute
    assert same.value == pytest.approx(apart.value)
    np.testing.assert_allclose(apart[1:3], [0, 0.2], atol=1e-9)  # a quarter of the draws takes one seed twice
    assert same.high - same.low < 1e-9


def test_ratios_are_of_sums_and_undefined_gains_are_not_measured():
    of = ratio("r", [1, 4, 9], [2, 8, 18])
    got = paired_gains([of], [ratio("r", [1, 1, 1], [4, 4, 4])], 0, 100)["r"]
    np.testing.assert_allclose(got.relative[:3], 100)
    nothing = paired_gains([of], [ratio("r", [0, 0, 0], [1, 1, 1])], 0, 100)["r"]
    assert nothing.relative.value is None and nothing.absolute.value == 0.5
    tiny = paired_gains([of], [ratio("r", [1e-9, 1e-9, 1e-9], [1, 1, 1])], 0, 100)["r"]
    assert tiny.relative.value is None and tiny.relative.low is None, "so many times nothing"
    never = paired_gains([of], [ratio("r", [0, 0, 0], [0, 0, 0])], 0, 100)["r"]
    assert never.absolute.value is None and never.absolute.n == 3


def test_a_seed_that_is_not_drawn_does_not_undefine_a_draw():
    odd = SumMetrics(("m",), np.ones((4, 1)), lambda sums: np.full(len(sums), np.nan))
    good = mean_of(np.arange(4.0))
    got = paired_gains([odd, good], [good, good], 0, 200)["m"].absolute
    assert got.value is None  # undefined on all pairs with all seeds
    both = joined([good, means({"other": np.arange(4.0) + 1})])
    assert set(paired_gains([both], [both], 0, 10)) == {"m", "other"}


def test_blocks_change_nothing(monkeypatch):
    of, over = [[mean_of(RNG.uniform(0, 1, 37)) for _ in range(2)] for _ in range(2)]
    whole = paired_gains(of, over, 3, 90)["m"]
    monkeypatch.setattr(bootstrap_module, "BLOCK_CELLS", 100)
    np.testing.assert_allclose(paired_gains(of, over, 3, 90)["m"].relative, whole.relative)


def test_what_cannot_be_compared_is_refused():
    one, other = mean_of([1.0, 2.0]), mean_of([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="same training seeds on both sides, got 2 and 1"):
        paired_gains([one, one], [one], 0, 10)
    with pytest.raises(ValueError, match=r"same pairs, got \[2, 3\]"):
        paired_gains([one], [other], 0, 10)
    with pytest.raises(ValueError, match="same training seeds"):
        paired_gains([], [], 0, 10)
