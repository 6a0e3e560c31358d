"""Stage train_downstream@method-arm: a mix -> a report writer and its reports.   dvc repro train_downstream@r2gen-real

in   mixes/<arm>, data/pairs (val and test), models/<method> (its prior)
out  models/<method>_<arm>, generated/<method>_<arm>/<dataset>/image_to_report.parquet
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medim.baselines import get_method
from medim.baselines.base import TrainInputs
from medim.baselines.writer_prior import PRIOR
from medim.downstream import MIX, read_mix, study_settings
from medim.generation import Question, answer
from medim.pairs import read_pairs
from medim.system_loading import load_system
from pipeline.params import read_section
from pipeline.params_file import PARAMS, read_yaml
from pipeline.paths import SPLITS, world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run

TASK = "image_to_report"


@dataclass(frozen=True)
class Section:
    """params.yaml:train_downstream. `changes` holds, per method, what differs from train_baseline.settings."""

    methods: tuple[str, ...]
    arms: tuple[str, ...]
    test_pairs: int
    chunk: int
    changes: Mapping[str, Mapping[str, Any]]


def main() -> None:
    """Train one method on one mix, and let it answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    parser.add_argument("--arm", required=True)
    method, arm = vars(parser.parse_args()).values()
    params, world, name = read_section("train_downstream", Section), world_from_params(), f"{method}_{arm}"
    usual = read_yaml(PARAMS)["train_baseline"]["settings"][method]
    settings = study_settings(usual, params.changes[method], method)
    section = {"settings": settings, "test_pairs": params.test_pairs, "chunk": params.chunk}
    prior = world.model(method) / PRIOR if settings["pretraining"] is not None else None
    inputs = [world.pairs_folder(), world.mix(arm), *([] if prior is None else [prior])]
    outputs = [world.model(name), world.generated(name)]
    with stage_run("train_downstream", f"{method}-{arm}", section=section, inputs=inputs, outputs=outputs) as run:
        mix, result = read_mix(world.mix(arm)), run.work / "result"
        seed, datasets = run.seed + mix.seed_offset, tuple(mix.train)
        real = {one: {split: world.pairs(one, split) for split in SPLITS} for one in datasets}
        pairs = {one: {**splits, "train": mix.train[one]} for one, splits in real.items()}
        trained = get_method(method).train(
            TrainInputs(pairs, datasets, settings, seed, run.work, result, run.log, device(), prior=prior,
                        order=mix.order)
        )  # fmt: skip
        shutil.copyfile(world.mix(arm) / MIX, result / MIX)
        system = load_system(result, device=device())
        for dataset in datasets:
            asked = Question(TASK, dataset, read_pairs(world.pairs(dataset, "test"), params.test_pairs))
            path = run.work / "generated" / dataset / f"{TASK}.parquet"
            answer(system, asked, run.seed, params.chunk, run.work / "parts", path)
        run.cost(**asdict(trained))
        run.place(result, world.model(name))
        run.place(run.work / "generated", world.generated(name))


if __name__ == "__main__":
    command(main)
