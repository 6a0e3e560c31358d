import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.data.domain import STATES, VALUE
from medim.metrics.bootstrap import Estimate, not_measured
from medim.metrics.findings import (
    distinct_sets_ratio,
    finding_f1_ratio,
    finding_frequency,
    finding_scores,
    finding_values,
    findings_within_30pct,
    merge_sides,
    pair_f1,
    sentence_validity,
    silent_pairs,
)

LABELS = ("left effusion", "right effusion", "cardiomegaly", "edema")
DRAWS = {"seed": 0, "resamples": 200}
states = st.dictionaries(st.sampled_from(LABELS), st.sampled_from(STATES))


def random_states(seed, count, hard=False):
    rng = np.random.default_rng(seed)
    chances = [0.6, 0, 0.4] if hard else [0.5, 0.2, 0.3]
    return [{label: str(rng.choice(STATES, p=chances)) for label in LABELS} for _ in range(count)]


def test_hard_states_give_the_ordinary_scores():
    from sklearn.metrics import precision_recall_fscore_support

    truth, predicted = random_states(1, 80, hard=True), random_states(2, 80, hard=True)
    got = finding_scores(truth, predicted, LABELS, **DRAWS)
    true, said = finding_values(truth, LABELS), finding_values(predicted, LABELS)
    precision, recall, f1, _ = precision_recall_fscore_support(true, said, average="macro", zero_division=0)
    assert got["finding_precision"].value == pytest.approx(precision)
    assert got["finding_recall"].value == pytest.approx(recall)
    assert got["finding_f1"].value == pytest.approx(f1)
    each = precision_recall_fscore_support(true, said, zero_division=0)[2]
    np.testing.assert_allclose([got[f"finding_f1 ({label})"].value for label in LABELS], each)
    assert all(score.n == 80 and score.low < score.value < score.high for score in got.values())


def test_soft_counts_by_hand():
    truth = [{"cardiomegaly": "present"}, {"cardiomegaly": "uncertain"}, {}]
    predicted = [{"cardiomegaly": "uncertain"}, {"cardiomegaly": "uncertain"}, {"cardiomegaly": "present"}]
    got = finding_scores(truth, predicted, LABELS, **DRAWS)  # TP = 1, predicted 2, true 1.5
    assert got["finding_precision"].value == pytest.approx(1 / 2)
    assert got["finding_recall"].value == pytest.approx(2 / 3)
    assert got["finding_f1"].value == pytest.approx(2 / 3.5)
    assert got["finding_f1 (edema)"] == not_measured(3)


def test_the_wrong_side_counts_only_with_side():
    got = finding_scores([{"left effusion": "present"}], [{"right effusion": "present"}], LABELS, **DRAWS)
    assert got["finding_f1"].value == 0
    assert got["finding_f1_without_side"].value == 1


def test_the_larger_side_is_the_finding():
    values, names = merge_sides(np.array([[0.5, 1, 0, 0], [0.5, 0, 1, 0]]), LABELS)
    assert names == ("effusion", "cardiomegaly", "edema")
    assert values.tolist() == [[1, 0, 0], [0.5, 1, 0]]


def test_intervals_are_those_of_resampled_pairs():
    truth, predicted = random_states(3, 40), random_states(4, 40)
    got = finding_scores(truth, predicted, LABELS, seed=7, resamples=50)["finding_f1"]
    generator, values = np.random.default_rng(7), []
    for index in generator.integers(0, 40, (50, 40)):
        drawn = finding_scores([truth[i] for i in index], [predicted[i] for i in index], LABELS, 0, 1)
        values.append(drawn["finding_f1"].value)
    np.testing.assert_allclose((got.low, got.high), np.quantile(values, [0.025, 0.975]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(states, states), min_size=1, max_size=12))
def test_f1_is_bounded_symmetric_and_one_only_for_the_truth(pairs):
    truth, predicted = [list(side) for side in zip(*pairs, strict=True)]
    there = finding_scores(truth, predicted, LABELS, 0, 2)
    back = finding_scores(predicted, truth, LABELS, 0, 2)
    assert there["finding_precision"].value == back["finding_recall"].value
    value = there["finding_f1"].value
    if value is None:
        assert not (finding_values(truth, LABELS).any() or finding_values(predicted, LABELS).any())
    else:
        assert value == pytest.approx(back["finding_f1"].value)
        assert 0 <= value <= 1
        same = np.array_equal(finding_values(truth, LABELS), finding_values(predicted, LABELS))
        assert (value > 1 - 1e-12) == same


def test_nothing_to_score():
    assert finding_scores([], [], LABELS, **DRAWS)["finding_f1"] == not_measured(0)
    assert finding_scores([{}, {}], [{}, {}], LABELS, **DRAWS)["finding_f1"] == not_measured(2)
    with pytest.raises(ValueError, match="2 and 1 pairs"):
        finding_scores([{}, {}], [{}], LABELS, **DRAWS)


def test_unknown_labels_and_states_are_named():
    with pytest.raises(ValueError, match=r"'nodule': 'present' \(entry 1\)"):
        finding_values([{}, {"nodule": "present"}], LABELS)
    with pytest.raises(ValueError, match="'maybe'"):
        finding_values([{"edema": "maybe"}], LABELS)


def test_pair_f1():
    truth = finding_values([{}, {"edema": "present"}, {"edema": "present"}, {}], LABELS)
    said = finding_values([{}, {"edema": "uncertain"}, {}, {"edema": "present"}], LABELS)
    np.testing.assert_allclose(pair_f1(truth, said), [1, 2 * 0.5 / 1.5, 0, 0])


def test_f1_ratio_and_its_worst_label():
    truth = [{"edema": "present", "cardiomegaly": "present"}] * 4
    lossy = [{"edema": "present"}] * 4
    got = finding_f1_ratio(truth, lossy, truth, LABELS, **DRAWS)
    assert got["finding_f1_ratio"].value == 0.5
    assert got["finding_f1_ratio_worst"].value == 0
    assert got["finding_f1_ratio (edema)"].value == 1 and got["finding_f1_ratio (cardiomegaly)"].value == 0
    same = finding_f1_ratio(truth, truth, truth, LABELS, **DRAWS)
    there = [name for name in got if "(" not in name or "edema" in name or "cardiomegaly" in name]
    assert {name: same[name] for name in there} == dict.fromkeys(there, Estimate(1, 1, 1, 4))
    blind = finding_f1_ratio(truth, lossy, [{}] * 4, LABELS, **DRAWS)
    assert blind == dict.fromkeys(got, not_measured(4))


def test_silent_pairs_are_those_in_which_neither_half_names_a_finding():
    said = [{}, {"edema": "absent"}, {"edema": "present"}, {}]
    seen = [{}, {}, {}, {"edema": "uncertain"}]
    assert silent_pairs(said, seen, **DRAWS).value == 0.5
    with pytest.raises(ValueError, match="same pairs"):
        silent_pairs(said, seen[:2], **DRAWS)


class Grammar:
    """Knows one sentence."""

    def read(self, report):
        return {}

    def is_valid(self, sentence):
        return sentence == "No effusion."


def test_sentence_validity():
    reports = ["No effusion. No effusion. Lungs lungs.", "", "No effusion"]
    assert sentence_validity(reports, Grammar(), **DRAWS).value == pytest.approx(2 / 5)
    assert sentence_validity([" "], Grammar(), **DRAWS) == Estimate(0, None, None, 1)
    assert sentence_validity(["No effusion."] * 3, Grammar(), **DRAWS) == Estimate(1, 1, 1, 3)


def test_findings_within_30_percent():
    train = {"left effusion": 0.1, "right effusion": 0.2, "cardiomegaly": 0.5, "edema": 0.0}
    generated = [{"left effusion": "uncertain"}] * 13 + [{"cardiomegaly": "present"}] * 36 + [{}] * 51
    got = findings_within_30pct(generated, train, **DRAWS)  # 0.13 of 0.1 yes, 0 of 0.2 no, 0.36 of 0.5 yes, 0 of 0 yes
    assert got.value == 0.75
    assert got.n == 100
    assert got.low < got.value
    own = random_states(5, 300)
    assert findings_within_30pct(own, finding_frequency(own, LABELS), **DRAWS).value == 1
    assert findings_within_30pct([], train, **DRAWS) == not_measured(0)


def test_finding_frequency_counts_uncertain_ones():
    got = finding_frequency([{"edema": "uncertain"}, {"edema": "absent"}, {"edema": "present"}, {}], LABELS)
    assert got == {"left effusion": 0, "right effusion": 0, "cardiomegaly": 0, "edema": 0.5}
    with pytest.raises(ValueError, match="at least one pair"):
        finding_frequency([], LABELS)


def test_distinct_sets_ratio():
    real = [{"edema": "present"}, {"edema": "uncertain"}, {"edema": "absent"}, {}, {"cardiomegaly": "present"}]
    assert distinct_sets_ratio(real[:4], real, **DRAWS).value == 1  # absent and left out are one
    got = distinct_sets_ratio([{}] * 4, real, **DRAWS)
    assert got.value == pytest.approx(1 / 3)
    assert got.n == 4
    with pytest.raises(ValueError, match="6 generated pairs need as many real ones, got 5"):
        distinct_sets_ratio([{}] * 6, real, **DRAWS)


def test_values_are_the_domains():
    assert set(VALUE) == set(STATES)
