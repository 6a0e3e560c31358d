"""Metrics as sums have the values of the metrics themselves, on all reports and on any draw of them."""

import json

import numpy as np
import pytest

from medim.data import get_domain
from medim.data.domain import labels_of
from medim.data.splits import drawn_pairs
from medim.metrics.bootstrap import bootstrap_sums
from medim.metrics.findings import finding_scores, sentence_validity
from medim.metrics.java import Meteor
from medim.metrics.report_sums import finding_sums, joined, text_sums, validity_sums
from medim.metrics.report_text import (
    coco_scores,
    copied_from_train,
    distinct_reports,
    length_ratio,
    nltk_scores,
    normalised,
)

PAIRS = list(drawn_pairs("phantom_cxr", "test", 0, 24, 32))
TRUE = {pair.pair_id: pair.report for pair in PAIRS}
SAID = dict(zip(TRUE, [PAIRS[0].report, *[pair.report for pair in PAIRS[:-3]], "", "xyz."], strict=True))
KNOWN = [pair.report for pair in PAIRS[:4]]


@pytest.fixture(scope="module")
def text():
    with Meteor() as meteor:
        yield (
            text_sums(SAID, TRUE, {normalised(report) for report in KNOWN}, meteor),
            coco_scores(SAID, TRUE, meteor, 0, 40),
        )


def test_text_metrics_have_the_values_and_intervals_of_the_evaluation(text):
    sums, coco = text
    said = [SAID[i] for i in sorted(SAID)]
    expected = coco | nltk_scores(SAID, TRUE, 0, 40)
    expected["length_ratio"] = length_ratio(SAID, TRUE, 0, 40)
    expected["distinct_reports"] = distinct_reports(said, 0, 40)
    expected["copied_from_train"] = copied_from_train(said, KNOWN, 0, 40)
    expected = {name: one for name, one in expected.items() if one.value is not None}  # without WordNet's data
    found = dict(zip(sums.names, bootstrap_sums(sums.rows, sums.statistic, 0, 40), strict=True))
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        np.testing.assert_allclose(found[name][:3], one[:3], atol=1e-12, err_msg=name)


def test_findings_and_sentences_have_the_values_of_the_evaluation():
    domain = get_domain("phantom_cxr")
    labels, ids = labels_of(domain.findings), sorted(SAID)
    by_id = {pair.pair_id: pair for pair in PAIRS}
    truth = [json.loads(by_id[i].findings) for i in ids]
    read = [domain.grammar.read(SAID[i]) for i in ids]
    both = joined([finding_sums(truth, read, labels), validity_sums([SAID[i] for i in ids], domain.grammar)])
    found = dict(zip(both.names, bootstrap_sums(both.rows, both.statistic, 3, 60), strict=True))
    expected = finding_scores(truth, read, labels, 3, 60)
    for name in both.names[:4]:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name)
    validity = sentence_validity([SAID[i] for i in ids], domain.grammar, 3, 60)
    np.testing.assert_allclose(found["sentence_validity"], validity)
