"""Image-report alignment: does a picture show what its report says?

The paper asks a vision-language model for a score in [0, 1] a pair; phantoms have exact readers on both sides, so there
the judge is the agreement of what is read from the report and what is read from the picture. Both stand behind `Judge`.
Shapes: N pairs, S picture side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import Findings, Grammar
from medim.metrics.bootstrap import Estimate, bootstrap_mean
from medim.metrics.findings import finding_values, pair_f1


class Judge(Protocol):
    """Scores how well reports fit pictures."""

    def scores(self, images: NDArray[np.uint8], reports: Sequence[str]) -> NDArray[np.float64]:
        """Pictures (N, S, S, 3) uint8 and their N reports -> (N,) scores in [0, 1]; 1 = they agree."""


@dataclass(frozen=True)
class PhantomJudge:
    """Soft F1 of the findings read from report and picture, pair by pair; two that say nothing agree (1).

    Args:
        grammar: reads the reports of the domain.
        read_images: (N, S, S, 3) uint8 -> findings that each picture shows (a trained finding reader).
        labels: all labels of the domain.
    """

    grammar: Grammar
    read_images: Callable[[NDArray[np.uint8]], Sequence[Findings]]
    labels: tuple[str, ...]

    def scores(self, images: NDArray[np.uint8], reports: Sequence[str]) -> NDArray[np.float64]:
        """See `Judge`.

        Raises:
            ValueError: the numbers of pictures and reports differ, or a reader names an unknown label.
        """
        _check(images, reports)
        shown = finding_values(self.read_images(images), self.labels)
        told = finding_values([self.grammar.read(report) for report in reports], self.labels)
        return pair_f1(told, shown)


def alignment(judge: Judge, images: NDArray[np.uint8], reports: Sequence[str], seed: int, resamples: int) -> Estimate:
    """Mean score of a judge over N pairs, with its interval.

    Args:
        judge: see `Judge`.
        images: (N, S, S, 3) uint8.
        reports: N reports.
        seed: seed of the bootstrap over pairs.
        resamples: its draws.

    Raises:
        ValueError: numbers differ, or the judge gave a score outside [0, 1] or none for some pair.
    """
    _check(images, reports)
    scores = judge.scores(images, reports)
    inside = (scores >= 0) & (scores <= 1)  # False for NaN too
    if scores.shape != (len(reports),) or not inside.all():
        raise ValueError(
            f"{type(judge).__name__} gave scores of shape {scores.shape}, {int((~inside).sum())} of them "
            f"outside [0, 1], for {len(reports)} pairs"
        )
    return bootstrap_mean(scores, seed, resamples)


def _check(images: NDArray[np.uint8], reports: Sequence[str]) -> None:
    if len(images) != len(reports):
        raise ValueError(f"{len(images)} pictures and {len(reports)} reports: pairs need as many of both")
