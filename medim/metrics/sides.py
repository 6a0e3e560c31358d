"""Does a model know left from right? Its scores of true reports against those of the same reports with sides exchanged.

Shapes: N pairs, b draws of the bootstrap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medim.metrics.bootstrap import Estimate, bootstrap, bootstrap_mean, counts, not_measured

Floats = NDArray[np.float64]

OTHER = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
OTHER |= {right: left for left, right in OTHER.items()}
SIDE_WORD = re.compile(rf"\b({'|'.join(OTHER)})\b")


def exchange_sides(text: str) -> str:
    """The text with every word `left` and `right` exchanged, in small letters, capitalised or in capitals."""
    return SIDE_WORD.sub(lambda found: OTHER[found[0]], text)


def wins(positive: Floats, negative: Floats) -> Floats:
    """(N,) and (M,) -> (N, M): 1 where the positive is larger, 1/2 where both are equal, else 0."""
    return np.heaviside(positive[:, None] - negative[None, :], 0.5)


def auroc(true: Sequence[float], exchanged: Sequence[float], seed: int, resamples: int) -> Estimate:
    """Chance that the true score of any pair is above the exchanged score of any pair, ties counted half.

    All true scores against all exchanged ones; the bootstrap draws pairs, each with both of its scores.

    Raises:
        ValueError: the lists differ in length.
    """
    table = wins(*_paired(true, exchanged))

    def statistic(index: NDArray[np.int64]) -> Floats:
        drawn = counts(index)  # (b, N)
        share: Floats = ((drawn @ table) * drawn).sum(axis=1) / len(table) ** 2
        return share

    return bootstrap(statistic, len(table), seed, resamples)


def side_scores(
    true: Sequence[float], exchanged: Sequence[float], asked: int, seed: int, resamples: int
) -> dict[str, Estimate]:
    """What the scores of N pairs say; n = N, the pairs whose report says something else when exchanged.

    Args:
        true: scores of the true reports, larger for what fits the picture better.
        exchanged: scores of the same reports with left and right exchanged.
        asked: pairs that were looked at, N of which have a report that the exchange changes.
        seed: seed of the bootstrap over pairs.
        resamples: its draws.

    Returns:
        `side_auroc` (see `auroc`); `side_pair_accuracy`, the share of pairs whose true report has the larger score, a
        tie counted half; `pairs_with_side`, N / asked.

    Raises:
        ValueError: the lists differ in length, or hold a number that is not finite.
    """
    first, second = _paired(true, exchanged)
    if not first.size:
        nothing = dict.fromkeys(("side_auroc", "side_pair_accuracy"), not_measured(0))
        return nothing | {"pairs_with_side": bootstrap_mean(np.zeros(asked), seed, resamples)}
    return {
        "side_auroc": auroc(true, exchanged, seed, resamples),
        "side_pair_accuracy": bootstrap_mean(np.heaviside(first - second, 0.5), seed, resamples),
        "pairs_with_side": bootstrap_mean(np.arange(asked) < first.size, seed, resamples),
    }


def _paired(true: Sequence[float], exchanged: Sequence[float]) -> tuple[Floats, Floats]:
    first, second = np.asarray(true, dtype=np.float64), np.asarray(exchanged, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} true and {len(second)} exchanged scores: both must be of the same pairs")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a score is not finite: run `dvc repro generate`, and look at the model if it comes again")
    return first, second
