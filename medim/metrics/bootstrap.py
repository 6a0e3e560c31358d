"""Bootstrap intervals: every measured number of the project is an `Estimate`.

Percentile bootstrap of Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13: N examples are
drawn N times with replacement, the statistic is computed on each draw, and its 2.5 % and 97.5 % quantiles are the
interval.
Everything is a function of the seed. Shapes: N examples, K columns, R resamples, b resamples in one block.

A statistic may be NaN on a draw where it is undefined (a finding that no drawn pair holds); such draws are left out of
the interval. NaN on all examples means "not measured": the value is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95  # share of draws inside an interval
BLOCK_CELLS = 1_000_000  # b * N: bounds memory to some ten MB, whatever R and N

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A measured number: `value`, its 95 % interval [`low`, `high`] and the number `n` of examples behind it.

    `value` None: not measured. `low` and `high` None: no interval (nothing measured, or fewer than two examples).
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def not_measured(n: int) -> Estimate:
    """What stands for a metric that could not be computed for these `n` examples."""
    return Estimate(None, None, None, n)


def draws(n: int, generator: np.random.Generator, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Indices of `resamples` draws of n out of n, in blocks (b, n)."""
    rows = max(1, BLOCK_CELLS // n)
    for start in range(0, resamples, rows):
        yield generator.integers(0, n, (min(rows, resamples - start), n), dtype=np.int64)


def counts(index: NDArray[np.int64]) -> Floats:
    """How often each example was drawn: indices (b, n) -> (b, n) float64, every row sums to n."""
    b, n = index.shape
    flat = index + n * np.arange(b)[:, None]
    return np.bincount(flat.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)


def estimate(value: float, values: ArrayLike, n: int) -> Estimate:
    """Value on all examples and values (R,) on the draws -> Estimate."""
    if np.isnan(value):
        return not_measured(n)
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if n < 2 or defined.size == 0:
        return Estimate(float(value), None, None, n)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), n)


def bootstrap(statistic: Callable[[NDArray[np.int64]], ArrayLike], n: int, seed: int, resamples: int) -> Estimate:
    """Estimate of any statistic of n examples.

    Args:
        statistic: indices (b, n) -> (b,) values; vectorised over its first axis.
        n: number of examples; 0 gives "not measured".
        seed: seed of the draws.
        resamples: number of draws R.
    """
    _check(n, resamples)
    if n == 0:
        return not_measured(0)
    value = np.asarray(statistic(np.arange(n)[None]), dtype=np.float64)
    generator = np.random.default_rng(seed)
    values = [np.asarray(statistic(index), dtype=np.float64) for index in draws(n, generator, resamples)]
    return estimate(value.item(), np.concatenate(values), n)


def bootstrap_sums(
    rows: ArrayLike, statistic: Callable[[Floats], ArrayLike], seed: int, resamples: int
) -> list[Estimate]:
    """Estimates of J statistics that depend on the examples only through sums: BLEU, METEOR, F1, ratios.

    Uses one product of count matrix and rows a block, so N = 5000 examples and R = 1000 cost less than a second. The
    draws are those of `bootstrap` with the same n, seed and resamples.

    Args:
        rows: (N, K) sufficient statistics of each example.
        statistic: sums (b, K) -> (b, J), or (b,) for J = 1.
        seed: seed of the draws.
        resamples: number of draws R.

    Returns:
        J estimates.

    Raises:
        ValueError: `rows` is empty: the number of statistics is then unknown.
    """
    table = np.asarray(rows, dtype=np.float64)
    n = len(table)
    _check(n, resamples)
    if n == 0:
        raise ValueError("bootstrap_sums needs at least one example, got none: return not_measured(0) before it")
    value = _columns(statistic(table.sum(axis=0)[None]))
    generator = np.random.default_rng(seed)
    values = np.concatenate(
        [_columns(statistic(counts(index) @ table)) for index in draws(n, generator, resamples)], axis=0
    )
    return [estimate(float(one), many, n) for one, many in zip(value[0], values.T, strict=True)]


def bootstrap_mean(values: ArrayLike, seed: int, resamples: int) -> Estimate:
    """Estimate of the mean of values (N,); an empty list is "not measured"."""
    column = np.asarray(values, dtype=np.float64)
    if column.size == 0:
        return not_measured(0)
    return bootstrap_sums(column[:, None], lambda sums: sums[:, 0] / len(column), seed, resamples)[0]


def bootstrap_ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int, resamples: int) -> Estimate:
    """Estimate of sum(numerators) / sum(denominators), both (N,), drawn together.

    Raises:
        ValueError: the two have different lengths.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    _same_length(above, below)
    if above.size == 0:
        return not_measured(0)
    return bootstrap_sums(np.stack([above, below], 1), lambda sums: divide(sums[:, 0], sums[:, 1]), seed, resamples)[0]


def bootstrap_difference(first: ArrayLike, second: ArrayLike, seed: int, resamples: int) -> Estimate:
    """Estimate of mean(first - second) of paired values (N,): two systems on the same examples.

    Raises:
        ValueError: the two have different lengths.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    _same_length(left, right)
    return bootstrap_mean(left - right, seed, resamples)


def bootstrap_two(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Callable[[Floats, Floats], ArrayLike],
    seed: int,
    resamples: int,
) -> Estimate:
    """Estimate of a statistic of two independent samples (N,) and (M,), each drawn by itself; n = N.

    Args:
        first: the sample that is judged.
        second: the sample it is compared with.
        statistic: (b, N), (b, M) -> (b,).
        seed: seed of the draws.
        resamples: number of draws R.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    _check(left.size, resamples)
    if left.size == 0 or right.size == 0:
        return not_measured(left.size)
    value = np.asarray(statistic(left[None], right[None]), dtype=np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK_CELLS // (left.size + right.size))
    values = []
    for start in range(0, resamples, rows):
        b = min(rows, resamples - start)
        drawn = [side[generator.integers(0, side.size, (b, side.size))] for side in (left, right)]
        values.append(np.asarray(statistic(drawn[0], drawn[1]), dtype=np.float64))
    return estimate(value.item(), np.concatenate(values), left.size)


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient, NaN (undefined) where the denominator is 0."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, np.nan, numerator / safe)


def _columns(values: ArrayLike) -> Floats:
    """(b,) or (b, J) -> (b, J)."""
    table = np.asarray(values, dtype=np.float64)
    return table[:, None] if table.ndim == 1 else table


def _check(n: int, resamples: int) -> None:
    if n < 0 or resamples < 1:
        raise ValueError(f"a bootstrap needs n >= 0 and resamples >= 1, got n = {n}, resamples = {resamples}")


def _same_length(first: Floats, second: Floats) -> None:
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired values must be two lists of one length, got shapes {first.shape} and {second.shape}")
