"""Stage compare_downstream: what each mix gains over real pairs alone, with intervals.   dvc repro compare_downstream

in   data/pairs, generated/<method>_<arm>, models/finding_reader
out  metrics/gains.json (see medim.downstream_gains)
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from medim.downstream_gains import gain_page
from medim.evaluation import Reference
from medim.metrics.finding_reader import load_finding_reader
from medim.metrics.java import Meteor
from pipeline.params import read_section
from pipeline.params_file import PARAMS, read_yaml
from pipeline.paths import world_from_params
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:compare_downstream."""

    resamples: int


def main() -> None:
    """Compare all mixes of all methods."""
    params, world = read_section("compare_downstream", Section), world_from_params()
    study = read_yaml(PARAMS)["train_downstream"]
    models = [f"{method}_{arm}" for method in study["methods"] for arm in study["arms"]]
    metrics, reader = world.metrics("gains"), world.model("finding_reader")
    section = {"resamples": params.resamples, "models": models, "datasets": study["datasets"]}
    inputs = [world.pairs_folder(), reader, *(world.generated(model) for model in models)]
    with stage_run("compare_downstream", section=section, inputs=inputs, outputs=[metrics]) as run, Meteor() as meteor:
        judge = load_finding_reader(reader)
        references = {
            name: Reference(name, world.pairs(name, "test"), world.pairs(name, "train"), judge)
            for name in study["datasets"]
        }
        page = gain_page(world.root / "generated", references, models, meteor, run.seed, params.resamples)
        (run.work / "gains.json").write_text(json.dumps(page, indent=1, sort_keys=True) + "\n")
        run.place(run.work / "gains.json", metrics)


if __name__ == "__main__":
    command(main)
