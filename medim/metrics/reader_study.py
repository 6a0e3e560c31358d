"""What the readers of a study say: ratings of each system, their difference, detection, agreement.

Intervals come from a crossed bootstrap: cases are drawn with replacement within system and dataset, and readers, where
there are two or more, independently of them; so they hold for other cases and other readers (three readers give rough
ones). Kappas draw cases only, since a reader drawn twice would agree with himself. A second showing counts for nothing
but the reader's agreement with himself. Shapes: N cases, R readers, b draws of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import mannwhitneyu, wilcoxon

from medim.metrics.bootstrap import (
    BLOCK_CELLS,
    Estimate,
    bootstrap,
    counts,
    divide,
    estimate,
    not_measured,
)
from medim.metrics.cumulative_link import log_odds
from medim.metrics.reader_agreement import (
    binomial_p,
    cohen_kappa,
    d_prime,
    fleiss_kappa,
    holm,
    mean_cohen_kappa,
    wilson,
)
from medim.metrics.reader_questions import GENERATED, ORIGIN, REAL, Question
from medim.metrics.reader_sheet import Ratings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats, Floats], ArrayLike]  # draws of cases (b, N), of readers (b, R) -> (b,)

ALL = "all"  # datasets, or readers, together
MATCHED, UNMATCHED = "Wilcoxon signed rank of matched cases", "Mann-Whitney of cases"


@dataclass(frozen=True)
class Comparison:
    """Two systems on one scale.

    Attributes:
        question: its id.
        dataset: or ALL.
        first, second: systems.
        difference: mean of the first - mean of the second.
        test: MATCHED where every case has its match in the other system, else UNMATCHED; of means over readers.
        p: of the test; `holm`: adjusted for all comparisons of the study.
        odds: logarithm of the odds ratio of a higher answer for the first, of the cumulative-link model with readers
            and datasets beside.
    """

    question: str
    dataset: str
    first: str
    second: str
    difference: Estimate
    test: str
    p: float
    holm: float
    odds: Estimate


@dataclass(frozen=True)
class Detection:
    """How well one reader, or ALL, tells generated from real.

    `accuracy`: Wilson's interval for a reader, the crossed bootstrap's for ALL. `p`: exact test against chance; None
    for ALL, whose answers to one case are not independent. `d_prime`: of ALL the mean over readers.
    """

    reader: str
    accuracy: Estimate
    p: float | None
    d_prime: Estimate


def crossed_bootstrap(
    statistic: Statistic, strata: Sequence[Ints], cases: int, readers: int, seed: int, resamples: int
) -> Estimate:
    """Estimate of a statistic of cases and readers that are both drawn; n = cases in the strata.

    Args:
        statistic: how often each case (b, N) and each reader (b, R) was drawn -> (b,).
        strata: rows of the cases that are drawn among each other; other cases are drawn never.
        cases: N.
        readers: R; one alone is not drawn.
        seed: seed of the draws.
        resamples: their number.
    """
    n = sum(map(len, strata))
    if n == 0:
        return not_measured(0)
    whole = np.zeros((1, cases))
    whole[:, np.concatenate(strata)] = 1
    value = np.asarray(statistic(whole, np.ones((1, readers))), np.float64)
    generator = np.random.default_rng(seed)
    size = max(1, BLOCK_CELLS // max(cases, readers))
    values = []
    for start in range(0, resamples, size):
        b = min(size, resamples - start)
        drawn = np.zeros((b, cases))
        for rows in strata:
            if len(rows):
                drawn[:, rows] = counts(generator.integers(0, len(rows), (b, len(rows)), dtype=np.int64))
        who = counts(generator.integers(0, readers, (b, readers), dtype=np.int64)) if readers > 1 else np.ones((b, 1))
        values.append(np.asarray(statistic(drawn, who), np.float64))
    return estimate(value.item(), np.concatenate(values), n)


def mean_rating(ratings: Floats, cases: Floats, readers: Floats) -> Floats:
    """Mean of ratings (N, R), NaN left out, under draws (b, N) and (b, R) -> (b,)."""
    there = ~np.isnan(ratings)
    total = ((cases @ np.where(there, ratings, 0.0)) * readers).sum(axis=1)
    return divide(total, ((cases @ there) * readers).sum(axis=1))


def numbers_of(question: Question, ratings: Ratings) -> Floats:
    """Answers on a scale as its numbers, (N, R)."""
    chosen = ratings.first[question.id]
    points = np.array([float(value) for value in question.values])
    return np.where(np.isnan(chosen), np.nan, points[np.nan_to_num(chosen).astype(int)])


def system_scores(ratings: Ratings, task: str, seed: int, resamples: int) -> dict[str, dict[str, Estimate]]:
    """Table row -> `<dataset>/<task>/human <question>` -> Estimate, n = cases.

    A scale gives the mean of its numbers, any other question the share of each option, `human <question> (<option>)`.
    """
    strata = {(s, d): ratings.rows(s, d) for s in ratings.systems for d in ratings.datasets}
    scores: dict[str, dict[str, Estimate]] = {system: {} for system in ratings.systems}
    for (system, dataset), rows in strata.items():
        for question in ratings.key.questions:
            if not len(rows) or not question.asked_of(dataset):
                continue
            chosen = ratings.first[question.id]
            tables = {"": numbers_of(question, ratings)} if question.ordered else {
                f" ({value})": np.where(np.isnan(chosen), np.nan, chosen == number)
                for number, value in enumerate(question.values)
            }  # fmt: skip
            for suffix, table in tables.items():
                found = crossed_bootstrap(
                    lambda cases, readers, table=table: mean_rating(table, cases, readers),  # type: ignore[misc]
                    [rows], len(ratings.cases), len(ratings.readers), seed, resamples,
                )  # fmt: skip
                scores[system][f"{dataset}/{task}/human {question.id}{suffix}"] = found
    return scores


def compare_systems(ratings: Ratings, seed: int, resamples: int) -> list[Comparison]:
    """All pairs of systems on all scales, dataset by dataset and (with two or more) on ALL."""
    systems, found = ratings.systems, []
    pairs = [(first, second) for i, first in enumerate(systems) for second in systems[i + 1 :]]
    places: list[str | None] = [*ratings.datasets, *([None] if len(ratings.datasets) > 1 else [])]
    for question in ratings.key.questions:
        if not question.ordered:
            continue
        for dataset in places:
            for first, second in pairs:
                one = _compare(ratings, question, dataset, (first, second), seed, resamples)
                found += [one] if one is not None else []
    adjusted = holm([one.p for one in found])
    return [Comparison(**{**vars(one), "holm": p}) for one, p in zip(found, adjusted, strict=True)]


def _compare(
    ratings: Ratings, question: Question, dataset: str | None, systems: tuple[str, str], seed: int, resamples: int
) -> Comparison | None:
    """One comparison, not yet adjusted; None where one system has no case that is asked."""
    table = numbers_of(question, ratings)
    rows = [[r for r in ratings.rows(system, dataset) if not np.isnan(table[r]).all()] for system in systems]
    if not all(rows):
        return None
    sides = [np.zeros(len(table)), np.zeros(len(table))]
    for side, chosen in zip(sides, rows, strict=True):
        side[chosen] = 1

    def difference(cases: Floats, readers: Floats) -> Floats:
        return mean_rating(table, cases * sides[0], readers) - mean_rating(table, cases * sides[1], readers)

    strata = [
        np.array([r for r in chosen if ratings.key.cases[ratings.cases[r]].dataset == name], dtype=np.int64)
        for chosen in rows
        for name in ratings.datasets
    ]
    gap = crossed_bootstrap(difference, strata, len(table), len(ratings.readers), seed, resamples)
    test, p = _test(ratings, table, rows)
    odds = _odds(ratings, question, rows)
    return Comparison(question.id, dataset or ALL, *systems, gap, test, p, p, odds)


def _test(ratings: Ratings, table: Floats, rows: Sequence[Sequence[int]]) -> tuple[str, float]:
    """Name and two-sided p of the test of two systems' cases, by their means over readers."""
    means = [dict(zip(chosen, np.nanmean(table[chosen], axis=1).tolist(), strict=True)) for chosen in rows]
    matches = [{ratings.key.cases[ratings.cases[r]].match: mean for r, mean in side.items()} for side in means]
    whole = all(len(by) == len(side) for by, side in zip(matches, means, strict=True))
    if whole and matches[0].keys() == matches[1].keys() and "" not in matches[0]:
        gaps = [matches[0][match] - matches[1][match] for match in sorted(matches[0])]
        return MATCHED, float(wilcoxon(gaps).pvalue) if any(gaps) else 1.0
    left, right = (list(side.values()) for side in means)
    return UNMATCHED, float(mannwhitneyu(left, right).pvalue) if len({*left, *right}) > 1 else 1.0


def _odds(ratings: Ratings, question: Question, rows: Sequence[Sequence[int]]) -> Estimate:
    """Cumulative-link model of all ratings: the first system against the second, readers and datasets beside."""
    chosen = ratings.first[question.id]
    lines = [
        (int(chosen[r, reader]), r, reader, float(number == 0))
        for number, side in enumerate(rows)
        for r in side
        for reader in range(chosen.shape[1])
        if not np.isnan(chosen[r, reader])
    ]
    answers, cases, readers, first = (np.array(column) for column in zip(*lines, strict=True))
    names = np.array([ratings.key.cases[ratings.cases[r]].dataset for r in cases])
    beside = [readers == reader for reader in np.unique(readers)[1:]] + [names == name for name in np.unique(names)[1:]]
    design = np.stack([first, *beside], axis=1).astype(np.float64)
    return log_odds(answers.astype(np.int64), design, cases.astype(np.int64))


def detection(ratings: Ratings, seed: int, resamples: int) -> list[Detection]:
    """How well each reader, and then ALL, tells generated pairs (the signal) from real ones; the share that is right.

    Returns:
        [] where the study did not ask for the origin, or shows pairs of one kind only: who always says "generated" is
        right about all of them.
    """
    if ORIGIN.id not in ratings.first:
        return []
    asked = ~np.isnan(ratings.first[ORIGIN.id]).any(axis=1)
    if not asked.any():
        return []
    said = (ratings.first[ORIGIN.id] == ORIGIN.values.index(GENERATED)).astype(np.float64)
    real = np.array([ratings.key.cases[case].system == REAL for case in ratings.cases])
    if real.all() or not real.any():
        return []
    right = np.where(real[:, None], 1 - said, said)
    strata = [np.flatnonzero(real & asked), np.flatnonzero(~real & asked)]

    def primes(cases: Floats) -> Floats:  # (b, N) -> (b, R)
        signal, noise = cases * ~real, cases * real
        return d_prime(signal @ said, signal.sum(axis=1, keepdims=True), noise @ said, noise.sum(axis=1, keepdims=True))

    def prime_of(r: int) -> Statistic:
        return lambda cases, _: primes(cases)[:, r]

    found, n, total = [], len(said), int(asked.sum())
    for r, reader in enumerate(ratings.readers):
        hits = int(right[asked, r].sum())
        accuracy = Estimate(hits / total, *wilson(hits, total), total)
        prime = crossed_bootstrap(prime_of(r), strata, n, 1, seed, resamples)
        found.append(Detection(reader, accuracy, binomial_p(hits, total), prime))
    readers = len(ratings.readers)
    accuracy = crossed_bootstrap(lambda c, r: mean_rating(right, c, r), strata, n, readers, seed, resamples)
    prime = crossed_bootstrap(lambda c, r: (primes(c) * r).sum(axis=1) / readers, strata, n, readers, seed, resamples)
    return [*found, Detection(ALL, accuracy, None, prime)]


def agreement(ratings: Ratings, seed: int, resamples: int) -> dict[str, Estimate]:
    """Chance-corrected agreement, in [-1, 1]; "not measured" where one option is all that was used.

    Returns:
        Question by question: `<question>/cohen_kappa`, the mean over pairs of readers (quadratic weights on a scale),
        and `<question>/fleiss_kappa` of all readers (options as names), n = cases; `<question>/own_kappa`, of first and
        second showing, all readers together, n = second showings.
    """
    found: dict[str, Estimate] = {}
    for question in ratings.key.questions:
        table, again = ratings.first[question.id], ratings.again[question.id]
        options, ordered = len(question.values), question.ordered
        rows = table[~np.isnan(table).any(axis=1)]

        def pairwise(index: Ints, rows: Floats = rows, k: int = options, scale: bool = ordered) -> Floats:
            return mean_cohen_kappa(rows, counts(index), k, scale)

        def together(index: Ints, rows: Floats = rows, k: int = options) -> Floats:
            return fleiss_kappa(rows, counts(index), k)

        shown = ~np.isnan(again)
        before, after = table[shown], again[shown]

        def own(index: Ints, pair: tuple[Floats, Floats] = (before, after), k: int = options,
                scale: bool = ordered) -> Floats:  # fmt: skip
            return cohen_kappa(*pair, counts(index), k, scale)

        found[f"{question.id}/cohen_kappa"] = bootstrap(pairwise, len(rows), seed, resamples)
        found[f"{question.id}/fleiss_kappa"] = bootstrap(together, len(rows), seed, resamples)
        found[f"{question.id}/own_kappa"] = bootstrap(own, len(before), seed, resamples)
    return found
