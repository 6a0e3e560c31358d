"""What one way of training gains over another, on the same test pairs and with the same training seeds.

Both ways are trained with S seeds and answer the same N test pairs. A metric is a function of sums over pairs (a mean,
a ratio, corpus BLEU, a macro F1), so a resample needs no text. Each draw takes N pairs out of N and S seeds out of S,
with replacement, the same ones for both ways: what both share (hard pairs, lucky seeds) cancels, and what is left
scatters as it would over other pairs and other seeds. (Percentile bootstrap as in medim.metrics.bootstrap; two seeds
say little about their scatter: a draw of S has on average 1 - 1/S of its variance, so few seeds give too short
intervals.)
Shapes: N pairs, S seeds, K sums, J metrics, b draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medim.metrics.bootstrap import Estimate, counts, divide, draws, estimate

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], ArrayLike]

LEAST_BASE = 5e-4  # a mean below it is printed as 0.000, and so many times nothing says nothing


class SumMetrics(NamedTuple):
    """J metrics of N examples as a function of sums: `rows` (N, K), `statistic` (b, K) -> (b, J) or (b,), `names` J."""

    names: tuple[str, ...]
    rows: Floats
    statistic: Statistic


class Gain(NamedTuple):
    """`relative`: 100 (of / over - 1), per cent, nan where over < LEAST_BASE; `absolute`: of - over; of the metric's
    means over seeds."""

    relative: Estimate
    absolute: Estimate


def paired_gains(of: Sequence[SumMetrics], over: Sequence[SumMetrics], seed: int, resamples: int) -> dict[str, Gain]:
    """Gain of each metric.

    Args:
        of: the way that is judged, a training seed each, on the same pairs in the same order.
        over: the way it is compared with, the same seeds in the same order.
        seed: seed of the draws of pairs and of seeds.
        resamples: number of draws.

    Raises:
        ValueError: numbers of seeds, of pairs or names of metrics differ, or there is nothing to compare.
    """
    _check(of, over)
    n, names = len(of[0].rows), of[0].names
    first, second = (_over_seeds(side, np.ones((1, n)), np.ones((1, len(side)))) for side in (of, over))
    pairs, seeds = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    above: list[Floats] = []
    below: list[Floats] = []
    for index in draws(n, pairs, resamples):
        drawn = counts(index)
        chosen = counts(seeds.integers(0, len(of), (len(index), len(of)), dtype=np.int64))
        above.append(_over_seeds(of, drawn, chosen))
        below.append(_over_seeds(over, drawn, chosen))
    many, fewer = np.concatenate(above), np.concatenate(below)
    relative, absolute = _relative(many, fewer), many - fewer
    value, difference = _relative(first, second)[0], (first - second)[0]
    return {
        name: Gain(
            estimate(float(value[j]), relative[:, j], n), estimate(float(difference[j]), absolute[:, j], n)
        )
        for j, name in enumerate(names)
    }  # fmt: skip


def _relative(of: Floats, over: Floats) -> Floats:
    return 100 * (divide(of, np.where(over < LEAST_BASE, 0.0, over)) - 1)


def _over_seeds(side: Sequence[SumMetrics], drawn: Floats, chosen: Floats) -> Floats:
    """Means over the chosen seeds, (b, J); `drawn` (b, N) and `chosen` (b, S) count how often each was drawn."""
    total = np.zeros((len(drawn), len(side[0].names)))
    for one, times in zip(side, chosen.T, strict=True):
        values = np.asarray(one.statistic(drawn @ one.rows), dtype=np.float64).reshape(len(drawn), -1)
        total += np.where(times[:, None] > 0, values, 0) * times[:, None]  # an undefined value counts only where drawn
    return total / chosen.shape[1]


def _check(of: Sequence[SumMetrics], over: Sequence[SumMetrics]) -> None:
    if not of or len(of) != len(over):
        raise ValueError(f"a gain needs the same training seeds on both sides, got {len(of)} and {len(over)}")
    sizes = {len(one.rows) for one in (*of, *over)}
    names = {one.names for one in (*of, *over)}
    if len(sizes) != 1 or sizes == {0} or len(names) != 1:
        raise ValueError(
            f"a gain needs the same metrics of the same pairs, got {sorted(sizes)} pairs and {sorted(names)}"
        )
