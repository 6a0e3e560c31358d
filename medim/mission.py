"""What the project promises on held-out patients, and whether it is reached: rows made from the table `mission`.

A promise is a column of that table and its least value. The promises stand in params.yaml, the numbers in the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medim.tables import MEDIM, MISSION_METRICS, TRIVIAL, Metrics

VALUE, HIGH = "value", "high"
YES, NO, NOT_MEASURED = "yes", "no", "not measured"
WORST = "_worst"  # ends the metric that is the smallest of `<metric> (<label>)`


@dataclass(frozen=True)
class Goal:
    """One promise."""

    what: str  # in words
    column: str  # of the table `mission`, without the dataset
    least: float
    judged_by: str  # value | high: the upper end of the interval, for what must not be lower beyond its interval
    datasets: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check column and rule.

        Raises:
            ValueError: names the one that does not exist, and those that do.
        """
        if self.column not in MISSION_METRICS:
            raise ValueError(f"no column {self.column!r} in the table mission: there are {', '.join(MISSION_METRICS)}")
        if self.judged_by not in (VALUE, HIGH):
            raise ValueError(f"judged_by must be {VALUE} or {HIGH}, got {self.judged_by!r}")


def mission_rows(goals: Sequence[Goal], built: Mapping[str, Any], metrics: Metrics) -> list[dict[str, Any]]:
    """One row a promise and dataset, dataset by dataset.

    Args:
        goals: the promises.
        built: the table `mission`, see `table_cells.build_table`.
        metrics: model -> content of metrics/<model>.json, for the name of the worst finding.

    Returns:
        {what, domain, column, value, low, high, n, goal, judged_by, reached, worst, trivial}: `reached` is YES, NO or
        NOT_MEASURED; `worst` names the finding of a column that ends with WORST, else None; `trivial` is the value
        (None: not measured) of each trivial row to which the column applies, by its name without TRIVIAL.

    Raises:
        KeyError: the table has no such column: the dataset is not among its own.
    """
    domains = dict.fromkeys(name for goal in goals for name in goal.datasets)
    return [_row(goal, name, built, metrics) for name in domains for goal in goals if name in goal.datasets]


def write_summaries(built: Mapping[str, Any], datasets: Mapping[str, str | None], folder: Path) -> None:
    """Write <name>.json, the `summary` of a dataset, for each name -> dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dataset in datasets.items():
        text = json.dumps(summary(built, dataset), indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def summary(built: Mapping[str, Any], dataset: str | None) -> dict[str, float]:
    """MeDiM's measured cells of the table `mission` for one dataset (none: {}), by column without the dataset."""
    return {
        cell["column"].removeprefix(f"{dataset}/"): cell["value"]
        for cell in built["cells"]
        if cell["row"] == MEDIM.name and cell["column"].startswith(f"{dataset}/") and cell["value"] is not None
    }


def _row(goal: Goal, domain: str, built: Mapping[str, Any], metrics: Metrics) -> dict[str, Any]:
    column = f"{domain}/{goal.column}"
    cells = {cell["row"]: cell for cell in built["cells"] if cell["column"] == column}
    if MEDIM.name not in cells:
        raise KeyError(
            f"the table mission has no column {column}: params.yaml:record_tables.mission may name the datasets "
            f"record_tables.chest and record_tables.pathology"
        )
    measured = cells[MEDIM.name]
    return {
        "what": goal.what, "domain": domain, "column": column,
        **{key: measured[key] for key in ("value", "low", "high", "n")},
        "goal": goal.least, "judged_by": goal.judged_by, "reached": _reached(goal, measured),
        "worst": worst_finding(column, metrics) if column.endswith(WORST) else None,
        "trivial": {
            row.removeprefix(TRIVIAL): cell["value"] for row, cell in cells.items() if row.startswith(TRIVIAL)
        },
    }  # fmt: skip


def _reached(goal: Goal, measured: Mapping[str, Any]) -> str:
    """Whether a cell keeps a promise; one judged by an interval that is not there is not measured."""
    number = measured[goal.judged_by]
    if number is None:
        return NOT_MEASURED
    return YES if number >= goal.least else NO


def worst_finding(column: str, metrics: Metrics) -> str | None:
    """The label with the smallest `<metric> (<label>)`, of the column `<metric>_worst`; None where none is measured."""
    start = f"{column.removesuffix(WORST)} ("
    found = {
        key.removeprefix(start).removesuffix(")"): entry["value"]
        for page in metrics.values()
        for row in page["rows"].values()
        for key, entry in row.items()
        if key.startswith(start) and entry["value"] is not None
    }
    return min(found, key=lambda label: found[label]) if found else None
