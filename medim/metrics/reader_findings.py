"""Findings that readers see in a picture, against those that its report states: the human side of `joint/finding_f1`.

Where a study asks for findings (drawn datasets; their reports can be read by the grammar), each reader says of each
finding, sides left out, whether the picture shows it. For real pairs the report is the truth, so these numbers are how
well readers see; for generated ones they are how well report and picture agree in readers' eyes, which are not better
than that. "Cannot tell", and no answer, count as not seen. Shapes: N cases, R readers, F findings.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import VALUE, Findings, without_side
from medim.metrics.bootstrap import Estimate, divide
from medim.metrics.reader_questions import FINDING
from medim.metrics.reader_sheet import Ratings
from medim.metrics.reader_study import crossed_bootstrap

Floats = NDArray[np.float64]
SEEN = "present"  # option of a question for a finding
SCORES = ("recall", "precision", "f1")


def stated_findings(findings: Findings) -> dict[str, str]:
    """Finding without side -> the surer of the states that a report gives its sides; what is absent is left out."""
    found: dict[str, str] = {}
    for label, state in findings.items():
        name = without_side(label)
        if VALUE[state] > VALUE[found.get(name, "absent")]:
            found[name] = state
    return found


def finding_agreement(ratings: Ratings, seed: int, resamples: int) -> dict[tuple[str, str], dict[str, Estimate]]:
    """(system, dataset) -> recall, precision and F1 over all its findings together, n = cases.

    `recall`: of the findings that reports state for certain, those that readers see. `precision`: of the findings that
    readers see, those that the report states, for certain or not. `f1`: their harmonic mean, 0 where nothing of what is
    stated or seen agrees. For the intervals cases are drawn and, where there are several, readers. Systems and datasets
    of which no case was read by a grammar, or that are asked for no finding, are left out.
    """
    found: dict[tuple[str, str], dict[str, Estimate]] = {}
    tables = {dataset: _counted(ratings, dataset) for dataset in ratings.datasets}
    for system in ratings.systems:
        for dataset in ratings.datasets:
            rows = ratings.rows(system, dataset)
            rows = rows[[ratings.key.cases[ratings.cases[row]].stated is not None for row in rows]]
            counted = tables[dataset]
            if not len(rows) or counted is None:
                continue
            found[system, dataset] = {
                name: crossed_bootstrap(
                    lambda cases, readers, name=name, tables=counted: _score(name, tables, cases, readers),  # type: ignore[misc]
                    [rows], len(ratings.cases), len(ratings.readers), seed, resamples,
                )
                for name in SCORES
            }  # fmt: skip
    return found


def _counted(ratings: Ratings, dataset: str) -> Mapping[str, Floats] | None:
    """(N, R) numbers of findings: `sure` stated for certain, `seen_sure` of these seen, `seen`, `seen_stated`."""
    asked = [one for one in ratings.key.questions if one.id.startswith(FINDING) and one.asked_of(dataset)]
    if not asked:
        return None
    names = [question.id.removeprefix(FINDING) for question in asked]
    told = [ratings.key.cases[case].stated or {} for case in ratings.cases]
    states = np.array([[VALUE[one.get(name, "absent")] for name in names] for one in told])[:, :, None]  # (N, F, 1)
    seen = np.stack([ratings.first[one.id] == one.values.index(SEEN) for one in asked], axis=1)  # (N, F, R)
    sure = np.broadcast_to(states == VALUE["present"], seen.shape)
    tables = {"sure": sure, "seen_sure": seen & sure, "seen": seen, "seen_stated": seen & (states > 0)}
    return {name: table.sum(axis=1).astype(np.float64) for name, table in tables.items()}


def _score(name: str, tables: Mapping[str, Floats], cases: Floats, readers: Floats) -> Floats:
    """One of recall, precision and F1 under draws (b, N) and (b, R) -> (b,)."""
    total = {key: ((cases @ table) * readers).sum(axis=1) for key, table in tables.items()}
    recall, precision = divide(total["seen_sure"], total["sure"]), divide(total["seen_stated"], total["seen"])
    both = divide(2 * recall * precision, recall + precision)
    missed = np.isnan(both) & (total["sure"] + total["seen"] > 0)
    return {"recall": recall, "precision": precision, "f1": np.where(missed, 0.0, both)}[name]
