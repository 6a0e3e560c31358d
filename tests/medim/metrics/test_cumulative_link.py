import numpy as np
import pytest
from scipy.special import expit, logit

from medim.metrics.cumulative_link import fit_cumulative_link, log_likelihood, log_odds


def draw(seed, effects, thresholds, number):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(number, len(effects)))
    latent = rng.logistic(size=number) + design @ np.array(effects)
    return np.searchsorted(thresholds, latent), design


def test_two_options_and_one_group_are_the_two_by_two_table():
    ratings = np.repeat([0, 1, 0, 1], [30, 10, 12, 28])
    design = np.repeat([0.0, 1.0], [40, 40])[:, None]
    fit = fit_cumulative_link(ratings, design, np.arange(80))
    assert fit.coefficients[0] == pytest.approx(np.log(28 * 30 / (12 * 10)), abs=1e-8)
    assert fit.thresholds[0] == pytest.approx(logit(0.75), abs=1e-8)
    # clusters of one: the sandwich of a saturated model is Woolf's variance
    assert fit.covariance[1, 1] == pytest.approx(1 / 30 + 1 / 10 + 1 / 12 + 1 / 28, rel=1e-5)


def test_without_columns_the_thresholds_are_those_of_the_shares():
    ratings = np.repeat([0, 1, 2], [5, 3, 2])
    fit = fit_cumulative_link(ratings, np.zeros((10, 0)), np.arange(10))
    np.testing.assert_allclose(expit(fit.thresholds), [0.5, 0.8], atol=1e-8)


def test_the_fit_is_the_top_of_the_likelihood():
    ratings, design = draw(0, [0.8, -0.5], [-1.0, 0.2, 1.5], 200)
    fit = fit_cumulative_link(ratings, design, np.arange(200))
    point = np.concatenate([fit.thresholds, fit.coefficients])
    best = log_likelihood(point, ratings, design, 3)
    for step in 0.02 * np.concatenate([np.eye(5), -np.eye(5)]):
        assert log_likelihood(point + step, ratings, design, 3) < best
    by_hand = 0.0
    for y, x in zip(ratings, design, strict=True):
        edges = [0, *expit(fit.thresholds - x @ fit.coefficients), 1]
        by_hand += np.log(edges[y + 1] - edges[y])
    assert best == pytest.approx(by_hand)


def test_known_effects_are_inside_the_interval_as_often_as_promised():
    inside = 0
    for seed in range(100):
        ratings, design = draw(seed, [0.7, -0.4], [-1.5, -0.3, 0.6, 1.8], 150)
        found = log_odds(ratings, design, np.arange(150))
        inside += found.low <= 0.7 <= found.high
        assert found.n == 150
    assert 88 <= inside <= 100


def test_copies_of_a_case_make_nothing_surer():
    ratings, design = draw(3, [0.5], [-1.0, 1.0], 100)
    once = log_odds(ratings, design, np.arange(100))
    five = log_odds(np.tile(ratings, 5), np.tile(design, (5, 1)), np.tile(np.arange(100), 5))
    assert five.value == pytest.approx(once.value, abs=1e-6)
    assert five.low == pytest.approx(once.low, abs=1e-4)


def test_unused_options_change_nothing():
    ratings, design = draw(4, [0.5], [-1.0, 1.0], 100)
    assert log_odds(ratings * 2 + 1, design, np.arange(100)) == log_odds(ratings, design, np.arange(100))


def test_where_nothing_finite_fits():
    group = np.repeat([0.0, 1.0], 10)[:, None]
    assert log_odds(np.zeros(20, int), group, np.arange(20)).value is None
    assert log_odds(np.repeat([0, 1], 10), group, np.arange(20)).value is None  # separated
    assert log_odds(np.arange(20) % 2, np.hstack([group, group]), np.arange(20)).value is None  # dependent
    with pytest.raises(ValueError, match="20 ratings, 19 rows"):
        fit_cumulative_link(np.zeros(20, int), group[:19], np.arange(20))
