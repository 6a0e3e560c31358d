"""Scores of findings: do report and picture say what is true, and is what is generated as varied as the real?

A finding's value v is 0, 1/2 or 1 for absent, uncertain, present (`VALUE`). Soft counts over pairs: true positives
TP = sum min(true, predicted), precision TP / sum predicted, recall TP / sum true, F1 = 2 TP / (sum predicted + sum
true); with values 0 and 1 these are the ordinary ones. Macro = mean over the labels that occur in truth or prediction;
a label with nothing predicted has precision 0, one that is nowhere true recall 0 (scikit-learn's zero_division=0).
Without side: a finding's value is the larger of its two sides'. Shapes: N pairs, L labels, b draws of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import VALUE, Findings, Grammar, without_side
from medim.data.report_reader import split_sentences
from medim.metrics.bootstrap import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_sums,
    bootstrap_two,
    divide,
    not_measured,
)
from medim.metrics.report_text import one_over_copies

Floats = NDArray[np.float64]

TOLERANCE = 0.3  # "within 30 %" of the training frequency


def finding_values(states: Sequence[Findings], labels: Sequence[str]) -> Floats:
    """States of N pairs -> values (N, L); a label that is left out is absent.

    Raises:
        ValueError: a label that is not among `labels`, or an unknown state.
    """
    column = {label: i for i, label in enumerate(labels)}
    values = np.zeros((len(states), len(labels)))
    for row, findings in enumerate(states):
        for label, state in findings.items():
            if label not in column or state not in VALUE:
                raise ValueError(
                    f"finding {label!r}: {state!r} (entry {row}) is unknown: labels are {', '.join(labels)}, states "
                    f"{', '.join(VALUE)}; data of another version needs `dvc repro prepare_data`"
                )
            values[row, column[label]] = VALUE[state]
    return values


def merge_sides(values: Floats, labels: Sequence[str]) -> tuple[Floats, tuple[str, ...]]:
    """Values (N, L) of labels with sides -> values (N, F) of findings (the larger side) and their names."""
    names = tuple(dict.fromkeys(map(without_side, labels)))
    columns = [[i for i, label in enumerate(labels) if without_side(label) == name] for name in names]
    return np.stack([values[:, sides].max(axis=1) for sides in columns], axis=1), names


def soft_counts(truth: Floats, predicted: Floats) -> Floats:
    """Values (N, L) twice -> (N, 3 L) summable counts: true positives, predicted, true."""
    return np.concatenate([np.minimum(truth, predicted), predicted, truth], axis=1)


def precision_recall_f1(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Summed `soft_counts` (b, 3 L) -> precision, recall, F1, each (b, L); NaN for a label that does not occur."""
    hits, said, true = np.split(sums, 3, axis=-1)
    occurs = said + true > 0

    def share(total: Floats) -> Floats:
        return np.where(occurs, hits / np.where(total > 0, total, 1.0), np.nan)

    return share(said), share(true), share((said + true) / 2)


def macro(scores: Floats) -> Floats:
    """Mean over the labels that occur: (b, L) with NaN -> (b,); NaN where none occurs."""
    there = ~np.isnan(scores)
    return divide(np.where(there, scores, 0.0).sum(axis=-1), there.sum(axis=-1).astype(np.float64))


def finding_scores(
    truth: Sequence[Findings], predicted: Sequence[Findings], labels: Sequence[str], seed: int, resamples: int
) -> dict[str, Estimate]:
    """Macro precision, recall and F1 with side, F1 without side, and F1 of each label.

    Args:
        truth: true findings of N pairs.
        predicted: findings read from report or picture, in the same order.
        labels: all labels of the domain (`labels_of`).
        seed: seed of the bootstrap over pairs.
        resamples: its draws.

    Returns:
        `finding_precision`, `finding_recall`, `finding_f1`, `finding_f1_without_side` and, for each label,
        `finding_f1 (<label>)`, all in [0, 1]; "not measured" where no finding occurs.

    Raises:
        ValueError: the lists differ in length, or see `finding_values`.
    """
    _same_number(truth, predicted)
    names = ["finding_precision", "finding_recall", "finding_f1", "finding_f1_without_side"]
    names += [f"finding_f1 ({label})" for label in labels]
    if not truth:
        return dict.fromkeys(names, not_measured(0))
    true, said = finding_values(truth, labels), finding_values(predicted, labels)
    width = 3 * len(labels)
    merged = soft_counts(merge_sides(true, labels)[0], merge_sides(said, labels)[0])

    def statistics(sums: Floats) -> Floats:
        precision, recall, f1 = precision_recall_f1(sums[:, :width])
        without = precision_recall_f1(sums[:, width:])[2]
        return np.column_stack([macro(precision), macro(recall), macro(f1), macro(without), f1])

    rows = np.concatenate([soft_counts(true, said), merged], axis=1)
    return dict(zip(names, bootstrap_sums(rows, statistics, seed, resamples), strict=True))


def finding_f1_ratio(
    truth: Sequence[Findings],
    predicted: Sequence[Findings],
    reference: Sequence[Findings],
    labels: Sequence[str],
    seed: int,
    resamples: int,
) -> dict[str, Estimate]:
    """What is left of the finding F1: of `predicted` / of `reference`, both against the same truth.

    For a VQGAN: findings read from its reconstructions / findings read from the pictures themselves.

    Returns:
        `finding_f1_ratio` of the macro F1, `finding_f1_ratio_worst`, the smallest ratio of any label (among labels that
        `reference` finds at all), and `finding_f1_ratio (<label>)` of each.

    Raises:
        ValueError: the lists differ in length, or see `finding_values`.
    """
    _same_number(truth, predicted)
    _same_number(truth, reference)
    names = ("finding_f1_ratio", "finding_f1_ratio_worst", *(f"finding_f1_ratio ({label})" for label in labels))
    if not truth:
        return dict.fromkeys(names, not_measured(0))
    true, said, base = (finding_values(states, labels) for states in (truth, predicted, reference))
    width = 3 * len(labels)

    def statistics(sums: Floats) -> Floats:
        above, below = precision_recall_f1(sums[:, :width])[2], precision_recall_f1(sums[:, width:])[2]
        ratios = divide(np.nan_to_num(above), np.nan_to_num(below))
        found = ~np.isnan(ratios)
        worst = np.where(found.any(axis=1), np.where(found, ratios, np.inf).min(axis=1), np.nan)
        return np.column_stack([divide(macro(above), macro(below)), worst, ratios])

    rows = np.concatenate([soft_counts(true, said), soft_counts(true, base)], axis=1)
    return dict(zip(names, bootstrap_sums(rows, statistics, seed, resamples), strict=True))


def pair_f1(truth: Floats, predicted: Floats) -> Floats:
    """Soft F1 of each pair over its labels, values (N, L) twice -> (N,) in [0, 1]; 1 where both are empty."""
    total = truth.sum(axis=1) + predicted.sum(axis=1)
    hits = np.minimum(truth, predicted).sum(axis=1)
    return np.where(total > 0, 2 * hits / np.where(total > 0, total, 1.0), 1.0)


def silent_pairs(first: Sequence[Findings], second: Sequence[Findings], seed: int, resamples: int) -> Estimate:
    """Share of pairs of which neither half names a finding: they agree, but on nothing (see `pair_f1`).

    Raises:
        ValueError: the lists differ in length.
    """
    _same_number(first, second)
    named = [any(VALUE[s] > 0 for half in halves for s in half.values()) for halves in zip(first, second, strict=True)]
    return bootstrap_mean([float(not one) for one in named], seed, resamples)


def sentence_validity(reports: Sequence[str], grammar: Grammar, seed: int, resamples: int) -> Estimate:
    """Share of the generated sentences that the grammar can produce, in [0, 1]; n = number of reports.

    An empty report counts as one invalid sentence. The bootstrap draws reports, not sentences.
    """
    sentences = [split_sentences(report) for report in reports]
    valid = [sum(map(grammar.is_valid, parts)) for parts in sentences]
    return bootstrap_ratio(valid, [max(1, len(parts)) for parts in sentences], seed, resamples)


def finding_frequency(states: Sequence[Findings], labels: Sequence[str]) -> dict[str, float]:
    """Share of pairs in which each label is not absent (uncertain counts), in [0, 1].

    Raises:
        ValueError: there are no pairs, or see `finding_values`.
    """
    if not states:
        raise ValueError("the frequency of findings needs at least one pair: run `dvc repro prepare_data`")
    shares = (finding_values(states, labels) > 0).mean(axis=0)
    return dict(zip(labels, map(float, shares), strict=True))


def findings_within_30pct(
    generated: Sequence[Findings], training_frequency: Mapping[str, float], seed: int, resamples: int
) -> Estimate:
    """Share of findings whose frequency among the generated lies within 30 % of that in training; n = generated pairs.

    A finding that never occurs in training is within when it is never generated. The interval draws generated pairs;
    the training frequency is taken as known. A draw's frequencies scatter about the generated ones, which puts fewer of
    them within, so the interval is widened to hold the value where it would miss it.

    Args:
        generated: findings of generated pairs.
        training_frequency: label -> share of training pairs (`finding_frequency`).
        seed: seed of the bootstrap.
        resamples: its draws.
    """
    if not generated:
        return not_measured(0)
    labels = tuple(training_frequency)
    target = np.array([training_frequency[label] for label in labels])
    there = (finding_values(generated, labels) > 0).astype(np.float64)
    slack = 1e-9  # 0.13 is within 30 % of 0.1, whatever the rounding

    def statistic(sums: Floats) -> Floats:
        return (np.abs(sums / len(there) - target) <= TOLERANCE * target + slack).mean(axis=1)

    found = bootstrap_sums(there, statistic, seed, resamples)[0]
    if found.value is None or found.low is None or found.high is None:
        return found
    return found._replace(low=min(found.low, found.value), high=max(found.high, found.value))


def distinct_sets_ratio(generated: Sequence[Findings], real: Sequence[Findings], seed: int, resamples: int) -> Estimate:
    """Different finding sets among N generated pairs / those among the first N real pairs; 1 = as varied as real.

    States belong to the set: possible and certain effusion differ. Like `distinct_reports`, the interval draws the
    terms 1 / copies, generated and real independently.

    Raises:
        ValueError: there are fewer real than generated pairs.
    """
    if len(real) < len(generated):
        raise ValueError(f"{len(generated)} generated pairs need as many real ones, got {len(real)}: take more pairs")
    sets = [[_as_set(states) for states in side] for side in (generated, real[: len(generated)])]
    return bootstrap_two(
        one_over_copies(sets[0]),
        one_over_copies(sets[1]),
        lambda first, second: first.sum(axis=1) / second.sum(axis=1),
        seed,
        resamples,
    )


def _as_set(states: Findings) -> frozenset[tuple[str, str]]:
    return frozenset((label, state) for label, state in states.items() if VALUE[state] > 0)


def _same_number(first: Sequence[Findings], second: Sequence[Findings]) -> None:
    if len(first) != len(second):
        raise ValueError(f"findings of {len(first)} and {len(second)} pairs: both lists must be of the same pairs")
