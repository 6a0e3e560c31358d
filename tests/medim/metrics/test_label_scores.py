import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, precision_score, recall_score

from medim.metrics.bootstrap import not_measured
from medim.metrics.chest_phrases import FIVE, LABELS
from medim.metrics.label_scores import agreement, label_scores, positives, precision_recall

tables = arrays(np.int8, st.tuples(st.integers(1, 12), st.just(14)), elements=st.sampled_from([1, 0, -1, -2]))


@settings(max_examples=8, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_micro_and_macro_are_those_of_scikit_learn(truth, random):
    said = truth.copy()
    for row in said:
        row[random.randrange(14)] = random.choice([1, 0, -1, -2])
    got = label_scores("x", truth, said, LABELS, 0, 5)
    five = [LABELS.index(label) for label in FIVE]
    for way, uncertain in (("uncertain as negative", [1]), ("uncertain as positive", [1, -1])):
        for size, columns in ((14, list(range(14))), (5, five)):
            a, b = np.isin(truth[:, columns], uncertain), np.isin(said[:, columns], uncertain)
            for mean in ("micro", "macro"):
                score = got[f"x_{mean}_f1_{size} ({way})"]
                if a.any() or b.any():
                    assert score.value == pytest.approx(f1_score(a, b, average=mean, zero_division=0))
                    assert score.n == len(truth)
                else:
                    assert score == not_measured(len(truth))
    a, b = truth == 1, said == 1
    if a.any() or b.any():
        shares = precision_recall("x", truth, said, 0, 5)
        for mean in ("micro", "macro"):
            for name, function in (("precision", precision_score), ("recall", recall_score)):
                value = shares[f"x_{mean}_{name}_14 (uncertain as negative)"].value
                assert value == pytest.approx(function(a, b, average=mean, zero_division=0))


def test_what_a_label_costs():
    truth = np.full((4, 14), -2, np.int8)
    truth[:, 5] = [1, 1, -1, 0]
    said = truth.copy()
    said[:, 5] = [1, 0, 1, 0]
    got = label_scores("ce_rules", truth, said, LABELS, 0, 50)
    assert got["ce_rules_f1 (Edema)"].value == pytest.approx(0.5)
    assert got["ce_rules_micro_f1_5 (uncertain as positive)"].value == pytest.approx(2 * 2 / (2 + 3))
    assert got["ce_rules_macro_f1_14 (uncertain as negative)"].value == pytest.approx(0.5 / 14)
    assert got["ce_rules_f1 (Fracture)"] == not_measured(4)
    assert len(got) == 8 + 14


def test_perfect_labels_have_no_width_and_nothing_is_not_measured():
    truth = np.array([[1] * 14, [1] * 14], np.int8)
    got = label_scores("x", truth, truth, LABELS, 0, 20)
    assert set(got.values()) == {(1.0, 1.0, 1.0, 2)}
    none = label_scores("x", truth[:0], truth[:0], LABELS, 0, 20) | precision_recall("x", truth[:0], truth[:0], 0, 20)
    assert set(none.values()) == {not_measured(0)}


def test_a_table_of_few_labels_has_no_five():
    truth = np.array([[1, 0]], np.int8)
    names = label_scores("x", truth, truth, ("Edema", "Mass"), 0, 5)
    assert [name for name in names if "macro" in name] == [
        "x_macro_f1_2 (uncertain as negative)",
        "x_macro_f1_2 (uncertain as positive)",
    ]


def test_wrong_tables_are_refused():
    truth = np.zeros((2, 14), np.int8)
    with pytest.raises(ValueError, match=r"shapes \(2, 14\) and \(1, 14\)"):
        label_scores("x", truth, truth[:1], LABELS, 0, 5)
    with pytest.raises(ValueError, match=r"got \[3\]"):
        positives(np.array([[3]], np.int8), uncertain=True)
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(truth, truth[:1])
    assert agreement(truth, truth) == (28, 28)
