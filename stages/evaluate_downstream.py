"""Stage evaluate_downstream: every metric of every mix, and what it gains over real pairs alone, with intervals.

dvc repro evaluate_downstream

in   data/pairs, data/filtered, generated/<method>_<arm>, models/finding_reader
out  metrics/downstream.json (see medim.downstream_gains)
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from medim.downstream_gains import downstream_page
from medim.evaluation import Evaluation, EvaluationSettings, Reference, modality_prompts
from medim.metrics.finding_reader import load_finding_reader
from medim.metrics.java import Meteor
from medim.report_filter import kept_ids
from pipeline.params import read_section
from pipeline.params_file import PARAMS, read_yaml
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:evaluate_downstream."""

    resamples: int


def main() -> None:
    """Evaluate and compare all mixes of all methods."""
    params, settings = (
        read_section("evaluate_downstream", Section),
        read_section("evaluate.settings", EvaluationSettings),
    )
    world, page = world_from_params(), read_yaml(PARAMS)
    study, datasets = page["train_downstream"], page["mix_pairs"]["datasets"]
    models = [f"{method}_{arm}" for method in study["methods"] for arm in study["arms"]]
    metrics, reader = world.metrics("downstream"), world.model("finding_reader")
    section = {"params": params, "settings": settings, "models": models, "datasets": datasets}
    inputs = [world.pairs_folder(), world.filtered(), reader, *(world.generated(model) for model in models)]
    with (
        stage_run("evaluate_downstream", section=section, inputs=inputs, outputs=[metrics]) as run,
        Meteor() as meteor,
    ):
        judge = load_finding_reader(reader).to(device())
        kept = kept_ids(world.filtered())
        references = {
            name: Reference(name, world.pairs(name, "test"), world.pairs(name, "train"), judge, kept=kept.get(name))
            for name in datasets
        }
        evaluation = Evaluation(references, modality_prompts(references), settings, meteor, run.seed)
        result = downstream_page(world.root / "generated", references, models, evaluation, params.resamples)
        (run.work / "downstream.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        run.place(run.work / "downstream.json", metrics)


if __name__ == "__main__":
    command(main)
