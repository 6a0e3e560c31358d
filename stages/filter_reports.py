"""Stage filter_reports: the test reports that written ones are held against, chosen by a judge.

dvc repro filter_reports

in   data/pairs, models/finding_reader
out  data/filtered/kept.json, data/filtered/<dataset>.parquet (pairs with judge, score and rank)
"""

from __future__ import annotations

from dataclasses import dataclass

from medim.evaluation import Reference
from medim.metrics.finding_reader import load_finding_reader
from medim.metrics.qwen_judge import QwenSettings
from medim.report_filter import ReportFilter, filter_reports, judge_of, judged_scores, write_manifest
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:filter_reports; no datasets: all reports count."""

    datasets: dict[str, int]
    judge: QwenSettings | None
    chunk: int

    def __post_init__(self) -> None:
        """ValueError: nothing of a dataset would be kept."""
        for name, keep in self.datasets.items():
            if keep < 1:
                raise ValueError(f"datasets.{name}: at least 1 report must be kept, got {keep}")


def main() -> None:
    """Judge and choose."""
    params, world = read_section("filter_reports", Section), world_from_params()
    out, reader = world.filtered(), world.model("finding_reader")
    inputs = [world.pairs_folder(), reader]
    with stage_run("filter_reports", section=params, inputs=inputs, outputs=[out], live=False) as run:
        result, kept = run.work / "filtered", {}
        result.mkdir(parents=True, exist_ok=True)
        seer = load_finding_reader(reader).to(device())
        for name, keep in params.datasets.items():
            test = world.pairs(name, "test")
            label, judge = judge_of(params.judge, Reference(name, test, world.pairs(name, "train"), seer))
            scores = judged_scores(test, judge, params.chunk)
            kept[name] = filter_reports(test, scores, ReportFilter(label, keep), result / f"{name}.parquet")
        write_manifest(kept, result)
        run.cost(examples=sum(one.judged for one in kept.values()))
        run.place(result, out)


if __name__ == "__main__":
    command(main)
