"""Filters: kept pairs counted by hand, precision and recall as defined."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medim.metrics.bootstrap import not_measured
from medim.synthesis_filters import NO_FILTER, PairFilter, filter_quality, kept, read_scores

REAL = np.array([0.1, 0.2, 0.3, 0.4, 0.5])


def scores(**given):
    base = {
        "alignment": [1, 0.5, 0.9, 0],
        "faithful": [1, 0, 0, 0],
        "pmi": [3, -1, 5, 0],
        "nearest": [0.1, 0.2, 0.3, 1],
    }
    return {name: np.array(values, float) for name, values in (base | given).items()}


def test_pairs_are_kept_by_every_score_that_is_asked():
    assert kept(scores(), NO_FILTER, np.zeros(0)).all()
    assert kept(scores(), PairFilter(0.9, None, None), REAL).tolist() == [True, False, True, False]
    assert kept(scores(), PairFilter(None, 0.0, None), REAL).tolist() == [True, False, True, True]
    assert kept(scores(), PairFilter(None, None, 0.25), REAL).tolist() == [False, True, True, True]  # quantile 0.2
    assert kept(scores(), PairFilter(0.5, 0.0, 0.25), REAL).tolist() == [False, False, True, False]


def test_precision_and_recall_are_shares_of_faithful_pairs():
    passed = np.array([True] * 6 + [False] * 4)
    faithful = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], float)
    found = filter_quality(passed, faithful, 0, 200)
    assert [found[name].value for name in ("kept", "faithful", "precision", "recall")] == [0.6, 0.4, 0.5, 0.75]
    assert all(one.low <= one.value <= one.high and one.n == 10 for one in found.values())


def test_a_filter_that_keeps_nothing_has_no_precision():
    found = filter_quality(np.zeros(4, bool), np.array([1.0, 0, 0, 1]), 0, 50)
    assert found["kept"].value == 0 and found["recall"].value == 0 and found["precision"].value is None


def test_where_the_truth_is_unknown_only_the_kept_share_is_measured():
    found = filter_quality(np.array([True, False]), np.array([np.nan, np.nan]), 0, 50)
    assert found["kept"].value == 0.5 and found["precision"] == not_measured(2)
    assert filter_quality(np.zeros(0, bool), np.zeros(0), 0, 50)["kept"] == not_measured(0)
    with pytest.raises(ValueError, match="2 filtered and 1 judged"):
        filter_quality(np.zeros(2, bool), np.zeros(1), 0, 50)


def test_a_score_that_is_missing_is_an_error_not_a_pass():
    with pytest.raises(ValueError, match=r"filter by pmi .* 1 of 4 have none"):
        kept(scores(pmi=[1, np.nan, 1, 1]), PairFilter(None, 0.0, None), REAL)
    with pytest.raises(ValueError, match="real held-out pairs"):
        kept(scores(), PairFilter(None, None, 0.1), np.zeros(0))
    with pytest.raises(ValueError, match=r"least_alignment must lie in \[0, 1\], got 2"):
        PairFilter(2.0, None, None)


def test_a_filter_says_what_it_asks():
    assert str(NO_FILTER) == "off"
    assert str(PairFilter(0.8, -1.0, 0.05)) == (
        "alignment ≥ 0.8, pmi ≥ -1 nats, nearest training picture beyond the 0.05 quantile of real ones"
    )


def test_scores_are_read_with_nan_for_null(tmp_path):
    table = {"alignment": [0.5, None], "faithful": [True, None], "pmi": [None, None], "nearest": [0.1, 0.2]}
    types = {"alignment": pa.float64(), "faithful": pa.bool_(), "pmi": pa.float64(), "nearest": pa.float64()}
    pq.write_table(pa.table({k: pa.array(v, types[k]) for k, v in table.items()}), tmp_path / "x.parquet")
    found = read_scores(tmp_path / "x.parquet")
    np.testing.assert_array_equal(found["alignment"], [0.5, np.nan])
    np.testing.assert_array_equal(found["faithful"], [1, np.nan])
    assert np.isnan(found["pmi"]).all()
    with pytest.raises(FileNotFoundError, match="dvc repro synthesize_pairs@"):
        read_scores(tmp_path / "none.parquet")
