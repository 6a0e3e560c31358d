"""F1 of finding labels: what generated reports say of each finding against what the true ones say.

The numbers that papers on chest reports print: micro and macro F1 over CheXpert's 14 labels and over its 5 competition
tasks, each with uncertain taken as negative and as positive (Smit et al. 2020; Miura et al. 2021). A label that is not
mentioned is not positive. As in scikit-learn with zero_division=0, a label that occurs on neither side has F1 0 in a
macro mean; where no label of a group occurs at all the score is undefined ("not measured").
Letters: N reports, L labels, b draws of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medim.metrics.bootstrap import Estimate, bootstrap_sums, divide, not_measured
from medim.metrics.chest_labels import NEGATIVE, POSITIVE, UNCERTAIN, UNMENTIONED
from medim.metrics.chest_phrases import FIVE
from medim.metrics.findings import soft_counts

Floats = NDArray[np.float64]
UNCERTAIN_AS = {"uncertain as negative": False, "uncertain as positive": True}
STATES = (POSITIVE, NEGATIVE, UNCERTAIN, UNMENTIONED)


def positives(labels: NDArray[np.int8], uncertain: bool) -> Floats:
    """Labels (N, L) -> 1.0 where a label is positive, or uncertain if `uncertain`, else 0.0.

    Raises:
        ValueError: a value that is none of STATES.
    """
    if not np.isin(labels, STATES).all():
        wrong = sorted(set(np.unique(labels).tolist()) - set(STATES))
        raise ValueError(f"labels are {', '.join(map(str, STATES))} (positive, negative, uncertain, none), got {wrong}")
    return ((labels == POSITIVE) | (uncertain & (labels == UNCERTAIN))).astype(np.float64)


def label_f1(sums: Floats) -> Floats:
    """Summed `soft_counts` (b, 3 L) of 0 and 1 -> F1 of each label (b, L); 0 for one that does not occur."""
    hits, said, true = np.split(sums, 3, axis=-1)
    return np.nan_to_num(divide(2 * hits, said + true))


def micro_macro(sums: Floats) -> Floats:
    """Summed `soft_counts` (b, 3 L) -> micro F1 and macro F1 (b, 2); NaN where no label occurs."""
    hits, said, true = (part.sum(axis=-1) for part in np.split(sums, 3, axis=-1))
    micro = divide(2 * hits, said + true)
    return np.stack([micro, np.where(np.isnan(micro), np.nan, label_f1(sums).mean(axis=-1))], axis=-1)


def label_scores(
    prefix: str, truth: NDArray[np.int8], predicted: NDArray[np.int8], labels: Sequence[str], seed: int, resamples: int
) -> dict[str, Estimate]:
    """Micro and macro F1 over all labels and over the five, both ways of counting uncertain, and F1 of each label.

    Args:
        prefix: who made the labels: `ce_rules`, `chexbert`, `ce_table`.
        truth: (N, L) labels of the true reports, of STATES.
        predicted: (N, L) labels of the generated ones, in the same order.
        labels: names of the L columns; the five are left out where a column of them is missing.
        seed: seed of the bootstrap over reports.
        resamples: its draws.

    Returns:
        `<prefix>_micro_f1_14 (uncertain as negative)`, `…_macro_f1_5 (uncertain as positive)`, …, and
        `<prefix>_f1 (<label>)` with uncertain as negative; in [0, 1]. The 14 is the number of columns.

    Raises:
        ValueError: the two differ in shape, do not fit `labels`, or hold another state.
    """
    if truth.shape != predicted.shape or truth.shape[1:] != (len(labels),):
        raise ValueError(
            f"labels of true and generated reports have shapes {truth.shape} and {predicted.shape}, both must be "
            f"(reports, {len(labels)})"
        )
    groups = {len(labels): list(range(len(labels)))}
    if len(labels) > len(FIVE) and set(FIVE) <= set(labels):
        groups[len(FIVE)] = [list(labels).index(label) for label in FIVE]
    scores: dict[str, Estimate] = {}
    for way, uncertain in UNCERTAIN_AS.items():
        names = [f"{prefix}_{mean}_f1_{size} ({way})" for size in groups for mean in ("micro", "macro")]
        names += [] if uncertain else [f"{prefix}_f1 ({label})" for label in labels]
        if not len(truth):
            scores |= dict.fromkeys(names, not_measured(0))
            continue
        rows = soft_counts(positives(truth, uncertain), positives(predicted, uncertain))
        statistic = partial(_group_scores, groups=tuple(groups.values()), each=not uncertain)
        scores |= dict(zip(names, bootstrap_sums(rows, statistic, seed, resamples), strict=True))
    return scores


def _group_scores(sums: Floats, groups: Sequence[Sequence[int]], each: bool) -> Floats:
    """Summed `soft_counts` (b, 3 L) -> micro and macro F1 of each group of columns, then F1 of each label if `each`."""
    parts = np.split(sums, 3, axis=-1)
    columns = [micro_macro(np.concatenate([part[:, group] for part in parts], axis=-1)) for group in map(list, groups)]
    if each:
        hits, said, true = parts
        columns.append(divide(2 * hits, said + true))
    return np.concatenate(columns, axis=-1)


def precision_recall(
    prefix: str, truth: NDArray[np.int8], predicted: NDArray[np.int8], seed: int, resamples: int
) -> dict[str, Estimate]:
    """Micro and macro precision and recall of label tables (N, L), uncertain as negative, as R2Gen's compute_ce prints.

    Returns:
        `<prefix>_micro_precision_<L> (uncertain as negative)`, and so on; "not measured" where no label occurs.

    Raises:
        ValueError: the two differ in shape.
    """
    agreement(truth, predicted)
    size = truth.shape[1]
    names = [
        f"{prefix}_{mean}_{score}_{size} (uncertain as negative)"
        for mean in ("micro", "macro")
        for score in ("precision", "recall")
    ]
    if not len(truth):
        return dict.fromkeys(names, not_measured(0))

    def statistic(sums: Floats) -> Floats:
        hits, said, true = np.split(sums, 3, axis=-1)
        none = (said + true).sum(axis=-1, keepdims=True) == 0
        shares = [np.nan_to_num(divide(hits, side)).mean(axis=-1) for side in (said, true)]
        whole = [np.nan_to_num(divide(hits.sum(axis=-1), side.sum(axis=-1))) for side in (said, true)]
        return np.where(none, np.nan, np.stack([*whole, *shares], axis=-1))

    rows = soft_counts(positives(truth, uncertain=False), positives(predicted, uncertain=False))
    return dict(zip(names, bootstrap_sums(rows, statistic, seed, resamples), strict=True))


def agreement(truth: NDArray[np.int8], predicted: NDArray[np.int8]) -> tuple[int, int]:
    """(cells that are equal, all cells) of two label tables, not mentioned being a state of its own.

    Raises:
        ValueError: their shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"label tables of shapes {truth.shape} and {predicted.shape} cannot be compared")
    return int((truth == predicted).sum()), truth.size
