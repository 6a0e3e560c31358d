"""The cumulative-link model of ratings on a scale (proportional odds, McCullagh 1980), fitted by maximum likelihood.

P(y <= k | x) = logistic(threshold_k - x b): b_j is the logarithm of the odds ratio of a higher answer per unit of x_j.
Intervals are Wald's with the sandwich covariance over clusters (Liang and Zeger 1986), since several readers rate one
case. With two options it is logistic regression. Shapes: M ratings, P columns, K options.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from medim.metrics.bootstrap import LEVEL, Estimate, not_measured

Floats = NDArray[np.float64]

STEPS, TOLERANCE = 100, 1e-8  # Newton steps; largest gradient entry, per rating, that counts as zero
DIFFERENCE = 1e-5  # of the central difference that gives the second derivative
LARGEST = 15.0  # log odds beyond this are those of separated data: the estimate is infinite


class Fit(NamedTuple):
    """Thresholds (K - 1,), coefficients (P,) and the covariance (K - 1 + P, K - 1 + P) of both."""

    thresholds: Floats
    coefficients: Floats
    covariance: Floats


def fit_cumulative_link(ratings: NDArray[np.int64], design: Floats, clusters: NDArray[np.int64]) -> Fit | None:
    """Fit the model, or None where no finite one exists (one option in use, separated or dependent columns).

    Args:
        ratings: (M,) numbers of options; options that nobody chose are left out, their thresholds are not defined.
        design: (M, P), without a column of ones.
        clusters: (M,) numbers of the cases; ratings of one cluster may depend on each other.

    Raises:
        ValueError: the lengths differ.
    """
    if not len(ratings) == len(design) == len(clusters):
        raise ValueError(f"{len(ratings)} ratings, {len(design)} rows of the design, {len(clusters)} clusters")
    used, numbers = np.unique(ratings, return_inverse=True)
    levels = len(used) - 1
    columns = np.column_stack([np.ones(len(design)), design])
    if levels < 1 or np.linalg.matrix_rank(columns) < columns.shape[1]:
        return None
    share = np.cumsum(np.bincount(numbers))[:-1] / len(numbers)
    point = np.concatenate([np.log(share / (1 - share)), np.zeros(design.shape[1])])
    found = _climb(point, numbers, design, levels)
    if found is None or np.abs(found[levels:]).max(initial=0.0) > LARGEST:
        return None
    scores = _scores(found, numbers, design, levels)
    inverse = np.linalg.inv(_curvature(found, numbers, design, levels))
    _, group = np.unique(clusters, return_inverse=True)
    sums = np.zeros((group.max() + 1, scores.shape[1]))
    np.add.at(sums, group, scores)
    return Fit(found[:levels], found[levels:], inverse @ (sums.T @ sums) @ inverse)


def log_odds(ratings: NDArray[np.int64], design: Floats, clusters: NDArray[np.int64]) -> Estimate:
    """Coefficient of the first column with Wald's interval; n = ratings. See `fit_cumulative_link`."""
    fit = fit_cumulative_link(ratings, design, clusters)
    if fit is None:
        return not_measured(len(ratings))
    place = len(fit.thresholds)
    value, half = float(fit.coefficients[0]), float(norm.ppf((1 + LEVEL) / 2) * np.sqrt(fit.covariance[place, place]))
    return Estimate(value, value - half, value + half, len(ratings))


def log_likelihood(point: Floats, numbers: NDArray[np.int64], design: Floats, levels: int) -> float:
    """Of thresholds and coefficients in one vector; -inf where the thresholds do not rise."""
    if (np.diff(point[:levels]) <= 0).any():
        return -np.inf
    upper, lower = _edges(point, numbers, design, levels)
    return float(np.log(np.maximum(upper - lower, 1e-300)).sum())


def _edges(point: Floats, numbers: NDArray[np.int64], design: Floats, levels: int) -> tuple[Floats, Floats]:
    """P(y <= own option) and P(y < own option) of each rating."""
    borders = np.concatenate([[-np.inf], point[:levels], [np.inf]])
    shift = design @ point[levels:]
    return expit(borders[numbers + 1] - shift), expit(borders[numbers] - shift)


def _scores(point: Floats, numbers: NDArray[np.int64], design: Floats, levels: int) -> Floats:
    """Derivative of each rating's log likelihood, (M, K - 1 + P)."""
    upper, lower = _edges(point, numbers, design, levels)
    share = np.maximum(upper - lower, 1e-300)
    high, low = upper * (1 - upper) / share, lower * (1 - lower) / share
    border = np.arange(levels)
    own, before = numbers[:, None] == border, numbers[:, None] - 1 == border
    return np.concatenate([own * high[:, None] - before * low[:, None], -design * (high - low)[:, None]], axis=1)


def _curvature(point: Floats, numbers: NDArray[np.int64], design: Floats, levels: int) -> Floats:
    """Minus the second derivative of the log likelihood."""
    columns = []
    for step in np.eye(len(point)) * DIFFERENCE:
        up, down = (_scores(point + sign * step, numbers, design, levels).sum(axis=0) for sign in (1, -1))
        columns.append((down - up) / (2 * DIFFERENCE))
    matrix = np.stack(columns)
    return (matrix + matrix.T) / 2


def _climb(point: Floats, numbers: NDArray[np.int64], design: Floats, levels: int) -> Floats | None:
    """Newton's method with halved steps from a point with rising thresholds."""
    value = log_likelihood(point, numbers, design, levels)
    for _ in range(STEPS):
        gradient = _scores(point, numbers, design, levels).sum(axis=0)
        if np.abs(gradient).max() <= TOLERANCE * len(numbers):
            return point
        curvature = _curvature(point, numbers, design, levels)
        if np.linalg.cond(curvature) > 1e12:
            return None
        step = np.linalg.solve(curvature, gradient)
        size, floor = 1.0, value - 1e-12 * abs(value)  # rounding is no descent
        while (new := log_likelihood(point + size * step, numbers, design, levels)) < floor and size > 1e-6:
            size /= 2
        if new < floor:
            return None
        point, value = point + size * step, new
    return None
