import numpy as np
import pytest
from scipy.stats import norm

from medim.metrics.reader_agreement import (
    binomial_p,
    cohen_kappa,
    d_prime,
    disagreement,
    fleiss_kappa,
    holm,
    mean_cohen_kappa,
    wilson,
)


def expand(table):
    """A contingency table as paired ratings."""
    pairs = [(k, j) for k, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return (np.array(side, float) for side in zip(*pairs, strict=True))


def test_wilson_is_the_root_of_its_quadratic():
    for successes, trials in ((0, 10), (3, 10), (50, 100), (100, 100)):
        z2 = norm.ppf(0.975) ** 2
        for border in wilson(successes, trials):
            gap = (successes / trials - border) ** 2
            assert gap == pytest.approx(z2 * border * (1 - border) / trials, abs=1e-12)
    assert wilson(0, 0) == (0, 1)


def test_binomial_test_by_hand():
    assert binomial_p(9, 10) == pytest.approx(2 * 11 / 1024)
    assert binomial_p(5, 10) == 1
    assert binomial_p(0, 0) == 1


def test_d_prime_by_hand():
    found = d_prime([84, 50, 10], [99, 99, 10], [15, 49, 0], [99, 99, 0])
    assert found[0] == pytest.approx(norm.ppf(0.845) - norm.ppf(0.155))
    assert found[1] == pytest.approx(norm.ppf(0.505) - norm.ppf(0.495))
    assert np.isnan(found[2])
    assert np.isfinite(d_prime(10, 10, 0, 10))


def test_cohen_kappa_of_a_published_table():
    # 20 and 15 agreements of 50: observed 0.7, chance 0.5 (the example of Wikipedia's page on Cohen's kappa)
    first, second = expand([[20, 5], [10, 15]])
    one = np.ones((1, 50))
    assert cohen_kappa(first, second, one, 2, False)[0] == pytest.approx(0.4)
    assert cohen_kappa(first, second, one, 2, True)[0] == pytest.approx(0.4)  # two options are no scale


def test_quadratic_kappa_is_cohens_formula():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 80)
    second = np.clip(first + rng.integers(-1, 2, 80), 0, 4)
    seen = sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / 80
    chance = sum((a - b) ** 2 for a in first for b in second) / 80**2
    found = cohen_kappa(first.astype(float), second.astype(float), np.ones((1, 80)), 5, True)[0]
    assert found == pytest.approx(1 - seen / chance)
    differ = sum(a != b for a in first for b in second) / 80**2
    named = cohen_kappa(first.astype(float), second.astype(float), np.ones((1, 80)), 5, False)[0]
    assert named == pytest.approx(1 - np.mean(first != second) / differ)


def test_weights_are_copies():
    first, second = expand([[4, 2], [1, 5]])
    drawn = np.random.default_rng(0).integers(0, 12, (5, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in drawn]).astype(float)
    found = cohen_kappa(first, second, weights, 2, False)
    for row, kappa in zip(drawn, found, strict=True):
        assert kappa == pytest.approx(cohen_kappa(first[row], second[row], np.ones((1, 12)), 2, False)[0])
    ratings = np.stack([first, second, first], axis=1)
    many = fleiss_kappa(ratings, weights, 2)
    for row, kappa in zip(drawn, many, strict=True):
        assert kappa == pytest.approx(fleiss_kappa(ratings[row], np.ones((1, 12)), 2)[0])


def test_what_is_missing_is_no_pair_and_chance_alone_is_undefined():
    first, second = np.array([0, 1, np.nan, 1]), np.array([0, 1, 1, np.nan])
    assert cohen_kappa(first, second, np.ones((1, 4)), 2, False)[0] == 1
    same = np.zeros(4)
    assert np.isnan(cohen_kappa(same, same, np.ones((1, 4)), 2, False)[0])
    assert np.isnan(fleiss_kappa(np.zeros((4, 2)), np.ones((1, 4)), 2)[0])
    assert np.isnan(fleiss_kappa(np.zeros((4, 1)), np.ones((1, 4)), 2)[0])
    assert np.isnan(mean_cohen_kappa(np.zeros((4, 1)), np.ones((1, 4)), 2, False)[0])


def test_fleiss_kappa_of_its_paper():
    # Fleiss (1971) as tabulated on Wikipedia's page: 14 raters, 10 subjects, 5 options, kappa 0.210
    counts = """0 0 0 0 14 / 0 2 6 4 2 / 0 0 3 5 6 / 0 3 9 2 0 / 2 2 8 1 1 / 7 7 0 0 0 / 3 2 6 3 0 / 2 5 3 2 2 /
    6 5 2 1 0 / 0 2 2 3 7"""
    rows = [[int(word) for word in row.split()] for row in counts.split("/")]
    ratings = np.array([[k for k, count in enumerate(row) for _ in range(count)] for row in rows], float)
    assert fleiss_kappa(ratings, np.ones((1, 10)), 5)[0] == pytest.approx(0.210, abs=5e-4)


def test_mean_of_all_pairs_of_readers():
    ratings = np.random.default_rng(1).integers(0, 3, (30, 3)).astype(float)
    one = np.ones((1, 30))
    pairs = [cohen_kappa(ratings[:, a], ratings[:, b], one, 3, True)[0] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert mean_cohen_kappa(ratings, one, 3, True)[0] == pytest.approx(np.mean(pairs))
    assert disagreement(3, True)[0].tolist() == [0, 0.25, 1]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []
