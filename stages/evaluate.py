"""Stage evaluate@model: every metric of a system's answers, with n and intervals.   dvc repro evaluate@medim

in   data/pairs, data/filtered, generated/<model>, models/finding_reader
out  metrics/<model>.json, figures/samples_<model>/<model>-<dataset>-<task>.png (sheets of its last row)
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from medim.evaluation import Evaluation, EvaluationSettings, Reference, as_json, modality_prompts
from medim.figures import save_png
from medim.generation import read_generated
from medim.metrics.finding_reader import load_finding_reader
from medim.metrics.java import Meteor
from medim.report_filter import kept_ids
from medim.sample_sheets import sample_sheets, settled
from medim.side_answers import read_sides
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:evaluate."""

    models: tuple[str, ...]
    datasets: dict[str, str]
    settings: EvaluationSettings
    sheet_columns: int
    sheet_zoom: int


def main() -> None:
    """Evaluate one system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    params = read_section("evaluate", Section)
    world = world_from_params()
    metrics, sheets = world.metrics(model), world.figures() / f"samples_{model}"
    reader, generated = world.model("finding_reader"), world.generated(model)
    inputs = [world.pairs_folder(), world.filtered(), generated, reader]
    with (
        stage_run("evaluate", model, section=params, inputs=inputs, outputs=[metrics, sheets]) as run,
        Meteor() as meteor,
    ):
        judge = load_finding_reader(reader).to(device())
        kept = kept_ids(world.filtered())
        references = {
            n: Reference(n, world.pairs(n, "test"), world.pairs(trained, "train"), judge, trained, kept.get(n))
            for n, trained in params.datasets.items()
        }
        samples = [sample for path in world.sample_files(model) for sample in read_generated(path)]
        evaluation = Evaluation(references, modality_prompts(references), params.settings, meteor, run.seed)
        sides = [score for path in world.side_files(model) for score in read_sides(path)]
        rows = list(dict.fromkeys(sample.row for sample in samples))
        scores = {
            row: as_json(
                evaluation.row([s for s in samples if s.row == row])
                | evaluation.sides([s for s in sides if s.row == row])
            )
            for row in rows
        }
        run.cost(examples=len(samples))
        text = json.dumps({"model": model, "rows": scores}, indent=1, sort_keys=True)
        (run.work / "metrics.json").write_text(text + "\n")
        shown = settled([sample for sample in samples if sample.row == rows[-1]], evaluation)
        for (dataset, task), page in sample_sheets(shown, references, params.sheet_columns, params.sheet_zoom).items():
            save_png(page, run.work / "sheets" / f"{model}-{dataset}-{task}.png")
        run.place(run.work / "metrics.json", metrics)
        run.place(run.work / "sheets", sheets)


if __name__ == "__main__":
    command(main)
