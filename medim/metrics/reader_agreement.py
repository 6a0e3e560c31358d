"""Statistics of ratings: chance-corrected agreement, detection, intervals of a share, and families of tests.

Sources: kappa Cohen (1960), weighted kappa Cohen (1968), Fleiss (1971); interval Wilson (1927); d' Green and Swets
(1966) with the log-linear correction of Hautus (1995); family of tests Holm (1979).
Shapes: M ratings, N cases, R readers, K options, b draws of a bootstrap (weights are how often a rating was drawn).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm

from medim.metrics.bootstrap import LEVEL, divide

Floats = NDArray[np.float64]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Interval of LEVEL for a share; (0, 1) where nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    z = float(norm.ppf((1 + LEVEL) / 2))
    share, square = successes / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * float(np.sqrt(share * (1 - share) / trials + square / (4 * trials)))
    return max(0.0, middle - half), min(1.0, middle + half)


def binomial_p(successes: int, trials: int) -> float:
    """Two-sided exact test of a share against chance, 1/2; 1 where nothing was tried."""
    return float(binomtest(successes, trials, 0.5).pvalue) if trials else 1.0


def d_prime(hits: ArrayLike, signals: ArrayLike, false_alarms: ArrayLike, noises: ArrayLike) -> Floats:
    """d' = z(hit rate) - z(false alarm rate), elementwise; NaN where there is no signal or no noise.

    Rates are (count + 1/2) / (number + 1), so that all or none stays finite (Hautus 1995).
    """
    hit, signal, false, noise = (np.asarray(one, np.float64) for one in (hits, signals, false_alarms, noises))
    value = norm.ppf((hit + 0.5) / (signal + 1)) - norm.ppf((false + 0.5) / (noise + 1))
    return np.where((signal > 0) & (noise > 0), value, np.nan)


def disagreement(options: int, ordered: bool) -> Floats:
    """How far apart two options are, (K, K) in [0, 1]: different or not; on a scale the squared distance."""
    number = np.arange(options)
    apart = np.abs(number[:, None] - number[None, :]) / max(1, options - 1)
    return apart**2 if ordered else (apart > 0).astype(np.float64)


def cohen_kappa(first: Floats, second: Floats, weights: Floats, options: int, ordered: bool) -> Floats:
    """Kappa of paired ratings (M,), numbers of options, under weights (b, M) -> (b,).

    On a scale with quadratic weights. Ratings that one side lacks (NaN) are no pair. NaN where chance alone explains
    all: both always chose one and the same option, or there is no pair.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    left, right = (np.eye(options)[side[both].astype(int)] for side in (first, second))
    table = np.einsum("bm,mk,ml->bkl", weights[:, both], left, right)
    apart = disagreement(options, ordered)
    seen = (apart * table).sum(axis=(1, 2)) * table.sum(axis=(1, 2))
    chance = np.einsum("kl,bk,bl->b", apart, table.sum(axis=2), table.sum(axis=1))
    return np.where(chance > 0, 1 - divide(seen, chance), np.nan)


def mean_cohen_kappa(ratings: Floats, weights: Floats, options: int, ordered: bool) -> Floats:
    """Mean of `cohen_kappa` over all pairs of readers: ratings (N, R), weights (b, N) -> (b,).

    Pairs of readers whose kappa is undefined are left out; NaN where all are.
    """
    readers = ratings.shape[1]
    pairs = [(r, s) for r in range(readers) for s in range(r)]
    if not pairs:
        return np.full(len(weights), np.nan)
    kappas = np.stack([cohen_kappa(ratings[:, r], ratings[:, s], weights, options, ordered) for r, s in pairs])
    there = ~np.isnan(kappas)
    return divide(np.where(there, kappas, 0.0).sum(axis=0), there.sum(axis=0).astype(np.float64))


def fleiss_kappa(ratings: Floats, weights: Floats, options: int) -> Floats:
    """Fleiss' kappa of cases that all R >= 2 readers rated: ratings (N, R), weights (b, N) -> (b,).

    Options are names, not a scale. NaN where there is one reader, no such case, or only one option in use.
    """
    whole = ~np.isnan(ratings).any(axis=1)
    readers = ratings.shape[1]
    if readers < 2 or not whole.any():
        return np.full(len(weights), np.nan)
    chosen = np.eye(options)[ratings[whole].astype(int)].sum(axis=1)  # (N, K) readers who chose it
    agree = ((chosen**2).sum(axis=1) - readers) / (readers * (readers - 1))
    drawn = weights[:, whole]
    total = drawn.sum(axis=1)
    seen = divide(drawn @ agree, total)
    chance = (divide(drawn @ chosen, readers * total[:, None]) ** 2).sum(axis=1)
    return np.where(chance < 1, divide(seen - chance, 1 - chance), np.nan)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given: the family's error stays below any level that one of them is below."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
