"""Filters of synthetic pairs by their scores, and how good such a filter is.

On phantoms it is known whether picture and report of a pair agree (`faithful`: the finding reader sees what the report
says), so a filter has a precision (share of the kept pairs that are faithful) and a recall (share of the faithful pairs
that are kept). The alignment of phantoms comes from the same reader: a filter by alignment is judged by what it
measures, so its figures say what the filter costs. A filter by `pmi`, the generator's own opinion, is judged by
another.
Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medim.metrics.bootstrap import Estimate, bootstrap_sums, divide, not_measured

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SCORES = ("alignment", "faithful", "pmi", "nearest")


@dataclass(frozen=True)
class PairFilter:
    """What a pair must have; null: not asked."""

    least_alignment: float | None  # the judge's score, [0, 1]
    least_pmi: float | None  # nats
    nearest_quantile: float | None  # no nearer to training than this share of real held-out pictures, [0, 1]

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        for name in ("least_alignment", "nearest_quantile"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")

    def __str__(self) -> str:
        """In words."""
        asked = (
            ("alignment", self.least_alignment, "≥ {:g}"), ("pmi", self.least_pmi, "≥ {:g} nats"),
            ("nearest training picture", self.nearest_quantile, "beyond the {:g} quantile of real ones"),
        )  # fmt: skip
        return ", ".join(f"{name} {text.format(value)}" for name, value, text in asked if value is not None) or "off"


NO_FILTER = PairFilter(None, None, None)


def read_scores(path: Path) -> dict[str, Floats]:
    """The SCORES of a file of synthetic pairs, each (N,), NaN for null; pictures are not read.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro synthesize_pairs@{path.parent.name}`")
    table = pq.read_table(path, columns=list(SCORES))
    return {
        name: np.array([np.nan if value is None else value for value in table[name].to_pylist()], dtype=np.float64)
        for name in SCORES
    }


def kept(scores: Mapping[str, Floats], asked: PairFilter, real_nearest: Floats) -> Bools:
    """(N,) pairs that pass.

    Args:
        scores: see `read_scores`.
        asked: the filter.
        real_nearest: (M,) distances of real held-out pictures to their nearest training pictures.

    Raises:
        ValueError: the filter asks for a score that some pair does not have, or for real ones where there are none.
    """
    passed = np.ones(len(scores["nearest"]), dtype=bool)
    for name, least in (("alignment", asked.least_alignment), ("pmi", asked.least_pmi)):
        if least is None:
            continue
        missing = int(np.isnan(scores[name]).sum())
        if missing:
            raise ValueError(
                f"a filter by {name} needs it of every pair, {missing} of {len(passed)} have none: set it to null, or "
                f"make them anew (params.yaml:synthesize_pairs; pmi needs pmi_masks above 0, alignment a judge)"
            )
        passed &= scores[name] >= least
    if asked.nearest_quantile is not None:
        if not len(real_nearest):
            raise ValueError("nearest_quantile needs real held-out pairs: raise prepare_data's val")
        passed &= scores["nearest"] >= np.quantile(real_nearest, asked.nearest_quantile)
    return passed


def filter_quality(passed: Bools, faithful: Floats, seed: int, resamples: int) -> dict[str, Estimate]:
    """How good a filter is.

    Args:
        passed: (N,) see `kept`.
        faithful: (N,) 1 where picture and report agree, else 0; NaN: unknown.
        seed: of the bootstrap over pairs.
        resamples: its draws.

    Returns:
        `kept` (share that passes), and where all of `faithful` is known `faithful` (share without the filter),
        `precision` and `recall`, else these are "not measured".

    Raises:
        ValueError: the two have different lengths.
    """
    if passed.shape != faithful.shape:
        raise ValueError(f"{len(passed)} filtered and {len(faithful)} judged pairs: both must be the same pairs")
    names = ("kept", "faithful", "precision", "recall")
    if not len(passed):
        return dict.fromkeys(names, not_measured(0))
    true = np.nan_to_num(faithful)
    rows = np.stack([passed, true, passed * true, np.ones(len(passed))], axis=1).astype(np.float64)

    def statistics(sums: Floats) -> Floats:
        keep, good, both, all_pairs = sums.T
        return np.stack([keep / all_pairs, good / all_pairs, divide(both, keep), divide(both, good)], axis=1)

    found = dict(zip(names, bootstrap_sums(rows, statistics, seed, resamples), strict=True))
    if np.isnan(faithful).any():
        return {"kept": found["kept"]} | dict.fromkeys(names[1:], not_measured(len(passed)))
    return found
