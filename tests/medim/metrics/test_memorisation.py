import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.metrics import memorisation as module
from medim.metrics.memorisation import nearest, nearest_train_gap, pixel_vectors


def vectors(seed, count, width=24, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, (count, width)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 17), min_size=1, max_size=4), st.integers(0, 99))
def test_nearest_equals_all_distances(count, blocks, seed):
    queries, train = vectors(seed, count), vectors(seed + 100, sum(blocks))
    got = nearest(queries, np.split(train, np.cumsum(blocks)[:-1]))
    every = np.linalg.norm(queries[:, None].astype(np.float64) - train[None], axis=-1)
    np.testing.assert_allclose(got.distance, every.min(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(got.row, every.argmin(axis=1))


def test_blocks_change_nothing(monkeypatch):
    queries, train = vectors(0, 20), vectors(1, 300)
    whole = nearest(queries, [train])
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    np.testing.assert_array_equal(nearest(queries, iter([train[:100], train[100:]])).row, whole.row)


def test_a_copy_has_distance_zero_far_from_the_origin():
    train = vectors(0, 50, width=300) + 1000
    got = nearest(train[[7, 3]], [train])
    assert got.row.tolist() == [7, 3]
    assert got.distance.tolist() == [0, 0]


def test_a_model_that_copies_has_a_negative_gap():
    train, real = vectors(0, 400), vectors(1, 150)
    copies = train[:150] + vectors(2, 150, scale=0.01)
    got = nearest_train_gap(copies, real, [train], seed=0, resamples=300)
    assert got.high < 0
    assert got.n == 150


def test_a_model_that_draws_from_the_truth_has_none():
    train = vectors(0, 400)
    got = nearest_train_gap(vectors(3, 300), vectors(1, 300), [train], seed=0, resamples=300)
    assert got.low < 0 < got.high
    far = nearest_train_gap(vectors(3, 300) + 5, vectors(1, 300), [train], seed=0, resamples=300)
    assert far.low > 0


def test_pixel_distance_is_root_mean_square():
    black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    assert nearest(pixel_vectors(black), [pixel_vectors(white)]).distance[0] == pytest.approx(1)
    half = white.copy()
    half[:, :4] = 0
    assert nearest(pixel_vectors(black), [pixel_vectors(half)]).distance[0] == pytest.approx(np.sqrt(0.5))


def test_errors_name_the_matter():
    with pytest.raises(ValueError, match="no training pictures"):
        nearest(vectors(0, 2), [])
    with pytest.raises(ValueError, match=r"\(3, 5\) do not fit queries of shape \(2, 24\)"):
        nearest(vectors(0, 2), [vectors(0, 3, width=5)])
