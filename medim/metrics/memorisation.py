"""Memorisation: are generated pictures nearer to the training pictures than unseen real pictures are?

A model that copies its training set gives pictures whose nearest training picture is nearer than that of a held-out
real one (cf. Meehan et al. 2020, "A Three Sample Test to Detect Data Copying in Generative Models"; here the gap of two
medians with an interval instead of a test). Distance: L2 between vectors, pixels or features.
Shapes: N queries, M training vectors, D numbers a vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medim.metrics.bootstrap import Estimate, bootstrap_two

Vectors = NDArray[np.float32]

BLOCK_ROWS = 1024  # training vectors a product


class Nearest(NamedTuple):
    """The nearest training vector of each query: `distance` (N,) and its `row` (N,) int64 in the stream."""

    distance: NDArray[np.float64]
    row: NDArray[np.int64]


def pixel_vectors(images: NDArray[np.uint8]) -> Vectors:
    """Pictures (N, S, S, 3) uint8 -> (N, 3 S^2) float32 scaled such that L2 is the root mean square difference, [0, 1].

    So the distances of two picture sizes can be compared.
    """
    flat = images.reshape(len(images), -1)
    return flat.astype(np.float32) / np.float32(255 * np.sqrt(flat.shape[1]))


def nearest(queries: Vectors, train: Iterable[Vectors]) -> Nearest:
    """The nearest training vector of each query, in constant memory: `train` is read once, block by block.

    Candidates are found by |q|^2 - 2 q.t + |t|^2 in float32 and their distances then computed from the difference, so
    that a copy has distance 0 and not the root of a rounding error.

    Args:
        queries: (N, D).
        train: blocks (m, D) of any size, in order: `[vectors]`, or vectors of a Parquet file's batches.

    Raises:
        ValueError: no training vector, or blocks of another width.
    """
    best = np.full(len(queries), np.inf)
    index = np.full(len(queries), -1, dtype=np.int64)
    start = 0
    for block in train:
        if block.ndim != 2 or block.shape[1] != queries.shape[1]:
            raise ValueError(f"training vectors of shape {block.shape} do not fit queries of shape {queries.shape}")
        for first in range(0, len(block), BLOCK_ROWS):
            rows = block[first : first + BLOCK_ROWS]
            candidate = _candidates(queries, rows)
            distance = np.linalg.norm((queries - rows[candidate]).astype(np.float64), axis=1)
            nearer = distance < best
            best[nearer], index[nearer] = distance[nearer], start + first + candidate[nearer]
        start += len(block)
    if start == 0:
        raise ValueError("there are no training pictures to compare with: run `dvc repro prepare_data`")
    return Nearest(best, index)


def _candidates(queries: Vectors, rows: Vectors) -> NDArray[np.int64]:
    """Index of the nearest of rows (m, D) for each query, (N,), up to rounding."""
    centre = rows.mean(axis=0)  # small numbers cancel less
    moved = rows - centre
    squares = np.einsum("md,md->m", moved, moved)
    return (squares - 2 * ((queries - centre) @ moved.T)).argmin(axis=1)


def median_gap(generated: NDArray[np.float64], real: NDArray[np.float64], seed: int, resamples: int) -> Estimate:
    """Median distance of generated (N,) - of held-out real (M,) pictures, with its interval; n = N."""
    return bootstrap_two(generated, real, lambda a, b: np.median(a, axis=1) - np.median(b, axis=1), seed, resamples)


def nearest_train_gap(
    generated: Vectors, real: Vectors, train: Iterable[Vectors], seed: int, resamples: int
) -> Estimate:
    """Median distance to the nearest training picture: of generated - of held-out real ones.

    Positive: generated pictures are not nearer to the training set than unseen real ones. Negative beyond the interval:
    the model copies.

    Args:
        generated: (N, D) vectors of generated pictures (`pixel_vectors`, or features).
        real: (M, D) vectors of held-out real pictures.
        train: blocks (m, D) of vectors of the training pictures; read once.
        seed: seed of the bootstrap over generated and real pictures.
        resamples: its draws.

    Raises:
        ValueError: see `nearest`.
    """
    both = nearest(np.concatenate([generated, real]), train).distance
    return median_gap(both[: len(generated)], both[len(generated) :], seed, resamples)
