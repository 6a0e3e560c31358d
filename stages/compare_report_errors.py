"""Stage compare_report_errors: which text metric notices which error of a report.   dvc repro compare_report_errors

in   data/pairs (test reports of drawn datasets)
out  metrics/report_errors.json, which the table `report_errors` shows
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from medim.data import get_domain
from medim.evaluation import as_json
from medim.metrics.java import Meteor
from medim.metrics.report_errors import error_scores, report_error_rows
from medim.pairs import read_pairs
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:compare_report_errors."""

    datasets: tuple[str, ...]
    ce_rules: tuple[str, ...]
    pairs: int
    resamples: int


def main() -> None:
    """Score right and wrong reports of every dataset."""
    params, world = read_section("compare_report_errors", Section), world_from_params()
    metrics = world.metrics("report_errors")
    with (
        stage_run("compare_report_errors", section=params, inputs=[world.pairs_folder()], outputs=[metrics]) as run,
        Meteor() as meteor,
    ):
        found = {
            name: report_error_rows(
                read_pairs(world.pairs(name, "test"), params.pairs), get_domain(name), meteor, run.seed,
                params.resamples, name in params.ce_rules,
            )
            for name in params.datasets
        }  # fmt: skip
        rows = {error: as_json(scores) for error, scores in error_scores(found).items()}
        page = {"model": "report_errors", "rows": rows}
        (run.work / "metrics.json").write_text(json.dumps(page, indent=1, sort_keys=True) + "\n")
        run.place(run.work / "metrics.json", metrics)


if __name__ == "__main__":
    command(main)
