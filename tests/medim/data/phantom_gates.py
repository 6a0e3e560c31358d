"""Gates that every phantom domain must pass: plain functions of a Domain, used by the tests of each domain.

A domain that is too easy teaches nothing: the report of the most similar training picture must score badly, some
finding must be small, no finding may be common, and reports must differ. All gates work on one sample of 2,000 training
and 500 test pairs at 64 pixels, drawn once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from medim.data.domain import VALUE, Domain, labels_of, without_side
from medim.pairs import Pair, decode_masks, load_images

N_TRAIN, N_TEST, SIZE, SEED = 2_000, 500, 64, 0
FIRST_TRAIN, FIRST_TEST = 0, 20_000_000


@dataclass(frozen=True)
class Sample:
    """Pairs of a domain with their pictures (N, S, S, 3) uint8 and finding values (N, labels) in {0, .5, 1}."""

    labels: tuple[str, ...]
    pairs: list[Pair]
    images: NDArray[np.uint8]
    values: NDArray[np.float64]


def draw(domain: Domain, count: int, first: int, seed: int = SEED, size: int = SIZE) -> Sample:
    """The first `count` pairs of the patients from `first` on."""
    labels = labels_of(domain.findings)
    stream = (pair for i in range(count) for pair in domain.pairs(seed, first + i, size))
    pairs = list(islice(stream, count))
    values = np.array([[VALUE[(pair.states or {}).get(label, "absent")] for label in labels] for pair in pairs])
    return Sample(labels, pairs, load_images(pairs), values)


@lru_cache(maxsize=4)
def sample_of(domain: Domain) -> tuple[Sample, Sample]:
    """(train, test) sample of a domain, drawn once."""
    return draw(domain, N_TRAIN, FIRST_TRAIN), draw(domain, N_TEST, FIRST_TEST)


def soft_macro_f1(true: NDArray[np.float64], guess: NDArray[np.float64]) -> float:
    """Macro F1 over the labels that occur; TP = sum min(true, guess). Both (N, labels)."""
    both = np.minimum(true, guess).sum(0)
    total = true.sum(0) + guess.sum(0)
    return float((2 * both[total > 0] / total[total > 0]).mean())


def merge_sides(labels: tuple[str, ...], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, labels) -> (N, findings): the larger value of the two sides."""
    names = list(dict.fromkeys(map(without_side, labels)))
    columns = [[i for i, label in enumerate(labels) if without_side(label) == name] for name in names]
    return np.stack([values[:, column].max(1) for column in columns], axis=1)


def nearest(train: NDArray[np.float32], test: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the nearest row of `train` (Euclidean) for every row of `test`."""
    distance = (train**2).sum(1)[None] - 2 * test @ train.T
    return distance.argmin(1)


def nearest_picture_f1(domain: Domain) -> dict[str, float]:
    """Soft macro F1 (with side) of the findings of the nearest training picture: by 'pixels', by 'pca64'."""
    train, test = sample_of(domain)
    a, b = (s.images.mean(3, dtype=np.float32).reshape(len(s.pairs), -1) / 255 for s in (train, test))
    mean = a.mean(0)
    a, b = a - mean, b - mean
    _, scores = eigsh(a @ a.T, k=64)  # the axes of the pictures, from the smaller Gram matrix
    axes = a.T @ scores
    axes /= np.linalg.norm(axes, axis=0)
    found = {"pixels": nearest(a, b), "pca64": nearest(a @ axes, b @ axes)}
    return {name: soft_macro_f1(test.values, train.values[index]) for name, index in found.items()}


def mask_areas(domain: Domain) -> dict[str, float]:
    """Finding without side -> mean share of the picture that its masks cover."""
    areas: dict[str, list[float]] = {}
    for pair in sample_of(domain)[0].pairs:
        for label, mask in decode_masks(pair.masks or b"").items() if pair.masks else ():
            areas.setdefault(without_side(label), []).append(float(mask.mean()))
    return {name: float(np.mean(shares)) for name, shares in areas.items()}


def prevalence(domain: Domain, sides: bool = False) -> dict[str, float]:
    """Finding (label if `sides`) -> share of the pairs that have it, faint or clear."""
    train, _ = sample_of(domain)
    values = train.values if sides else merge_sides(train.labels, train.values)
    names = train.labels if sides else tuple(dict.fromkeys(map(without_side, train.labels)))
    return dict(zip(names, (values > 0).mean(0).tolist(), strict=True))


def distinct_reports(domain: Domain) -> float:
    """Share of different reports among the training pairs."""
    train, _ = sample_of(domain)
    return len({pair.report for pair in train.pairs}) / len(train.pairs)


def report_lengths(domain: Domain) -> NDArray[np.int64]:
    """Words of every training report."""
    return np.array([len(pair.report.split()) for pair in sample_of(domain)[0].pairs])


def misread(domain: Domain) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """(report, truth, read) of the training pairs whose report does not read back as the truth of its scene."""
    wrong = []
    for pair in sample_of(domain)[0].pairs:
        truth, read = domain.truth(json.loads(pair.scene or "{}")), domain.grammar.read(pair.report)
        if truth != read or truth != pair.states:
            wrong.append((pair.report, truth, read))
    return wrong


def assert_gates(domain: Domain) -> None:
    """All gates but speed (benchmarks/bench_phantoms.py) and phrasings (the grammar refuses fewer than four)."""
    f1 = nearest_picture_f1(domain)
    assert max(f1.values()) <= 0.55, f"{domain.name}: the nearest picture knows too much: {f1}"
    areas = mask_areas(domain)
    assert min(areas.values()) <= 0.04, f"{domain.name}: no finding is small: {areas}"
    common = prevalence(domain)
    assert all(0.03 <= share <= 0.30 for share in common.values()), f"{domain.name}: prevalence {common}"
    assert distinct_reports(domain) >= 0.95
    assert misread(domain) == []
    assert report_lengths(domain).max() <= 60
    assert not any(":" in pair.report for pair in sample_of(domain)[0].pairs)
