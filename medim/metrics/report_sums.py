"""Every metric of generated reports as a function of sums over reports, for resampling without any text.

The metrics are those of medim.metrics.report_text and medim.metrics.findings, by the same functions, and their values
on all reports are equal; `distinct_reports` and CIDEr keep the terms of the full set, as there.
Shapes: N reports, L labels, b draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import Findings, Grammar
from medim.data.report_reader import split_sentences
from medim.metrics.bootstrap import divide
from medim.metrics.findings import finding_values, macro, merge_sides, precision_recall_f1, soft_counts
from medim.metrics.gains import SumMetrics
from medim.metrics.java import Meteor, addable, meteor_score, ptb_tokenize
from medim.metrics.report_text import (
    NGRAM,
    Reports,
    bleu_of_sums,
    bleu_statistics,
    coco_cider,
    coco_rouge,
    load_wordnet,
    nltk_bleu,
    nltk_meteor,
    nltk_rouge,
    normalised,
    one_over_copies,
    paired,
)

Floats = NDArray[np.float64]


def joined(parts: Sequence[SumMetrics]) -> SumMetrics:
    """Metrics of the same examples side by side."""
    widths = np.cumsum([0, *(part.rows.shape[1] for part in parts)])

    def statistic(sums: Floats) -> Floats:
        values = [
            np.asarray(part.statistic(sums[:, start:stop]), dtype=np.float64).reshape(len(sums), -1)
            for part, start, stop in zip(parts, widths[:-1], widths[1:], strict=True)
        ]
        return np.concatenate(values, axis=1)

    names = tuple(name for part in parts for name in part.names)
    return SumMetrics(names, np.concatenate([part.rows for part in parts], axis=1), statistic)


def means(values: Mapping[str, Sequence[float] | Floats]) -> SumMetrics:
    """Metrics that are means of (N,) values."""
    columns = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)
    rows = np.concatenate([columns, np.ones((len(columns), 1))], axis=1)
    return SumMetrics(tuple(values), rows, lambda sums: sums[:, :-1] / sums[:, -1:])


def ratio(name: str, numerators: Sequence[float], denominators: Sequence[float]) -> SumMetrics:
    """A quotient of sums."""
    rows = np.stack([np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)], axis=1)
    return SumMetrics((name,), rows, lambda sums: divide(sums[:, 0], sums[:, 1]))


def per_report_scores(
    said: Sequence[str], true: Sequence[str], cut: Sequence[str], cut_true: Sequence[str]
) -> dict[str, Floats]:
    """Text metrics that each of N reports has by itself: name -> (N,).

    METEOR (nltk) is left out where NLTK has no WordNet.

    Args:
        said: generated reports.
        true: the true ones.
        cut: `said` by `ptb_tokenize`.
        cut_true: `true` by `ptb_tokenize`.
    """
    bleu, wordnet = nltk_bleu(said, true), load_wordnet()
    found = {
        "ROUGE-L (coco)": coco_rouge(cut, cut_true),
        "CIDEr (coco)": coco_cider(cut, cut_true),
        **{f"BLEU-{n + 1} (nltk)": bleu[:, n] for n in range(NGRAM)},
        "ROUGE-L (nltk)": nltk_rouge(said, true),
    }
    return found if wordnet is None else found | {"METEOR (nltk)": nltk_meteor(said, true, wordnet)}


def text_sums(generated: Reports, reference: Reports, known: set[str], meteor: Meteor) -> SumMetrics:
    """All text metrics, with the names of `coco_scores`, `nltk_scores` and medim.evaluation.

    Args:
        generated: pair_id -> generated report.
        reference: pair_id -> true report, same ids; rows are in the order of sorted ids.
        known: training reports, `normalised`.
        meteor: the running METEOR process.

    Raises:
        ValueError: see `paired`.
    """
    said, true = paired(generated, reference)
    tokens = ptb_tokenize([*said, *true])
    cut, cut_true = tokens[: len(said)], tokens[len(said) :]
    copied = known - {""}
    per_report: dict[str, Sequence[float] | Floats] = {
        **per_report_scores(said, true, cut, cut_true),
        "distinct_reports": one_over_copies([normalised(report) for report in said]),
        "copied_from_train": [float(normalised(report) in copied) for report in said],
    }
    return joined(
        [
            SumMetrics(
                tuple(f"BLEU-{n} (coco)" for n in range(1, NGRAM + 1)), bleu_statistics(cut, cut_true), bleu_of_sums
            ),
            SumMetrics(("METEOR (coco)",), addable(meteor.statistics(cut, cut_true)), meteor_score),
            means(per_report),
            ratio("length_ratio", [len(one.split()) for one in said], [len(one.split()) for one in true]),
        ]
    )


def finding_sums(truth: Sequence[Findings], predicted: Sequence[Findings], labels: Sequence[str]) -> SumMetrics:
    """Macro precision, recall and F1 with side and F1 without, see `finding_scores`.

    Raises:
        ValueError: see `finding_values`.
    """
    true, said = finding_values(truth, labels), finding_values(predicted, labels)
    width = 3 * len(labels)
    merged = soft_counts(merge_sides(true, labels)[0], merge_sides(said, labels)[0])

    def statistic(sums: Floats) -> Floats:
        scores = [*precision_recall_f1(sums[:, :width]), precision_recall_f1(sums[:, width:])[2]]
        return np.column_stack([macro(score) for score in scores])

    names = ("finding_precision", "finding_recall", "finding_f1", "finding_f1_without_side")
    return SumMetrics(names, np.concatenate([soft_counts(true, said), merged], axis=1), statistic)


def validity_sums(reports: Sequence[str], grammar: Grammar) -> SumMetrics:
    """`sentence_validity`."""
    sentences = [split_sentences(report) for report in reports]
    valid = [float(sum(map(grammar.is_valid, parts))) for parts in sentences]
    return ratio("sentence_validity", valid, [float(max(1, len(parts))) for parts in sentences])
