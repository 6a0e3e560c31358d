"""Stage train_baseline@method: the same pairs -> a system that is not MeDiM's.   dvc repro train_baseline@trivial

in   data/pairs, data/tokens, models/text_tokenizer, models/vqgan (each method reads what it needs)
out  models/<method>
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medim.baselines import get_method
from medim.baselines.base import TrainInputs
from pipeline.params import read_section
from pipeline.paths import SPLITS, world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:train_baseline."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]


def main() -> None:
    """Train one method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    method = parser.parse_args().method
    params = read_section("train_baseline", Section)
    world = world_from_params()
    out = world.model(method)
    section = {"datasets": params.datasets, "settings": params.settings[method]}
    tokenizer, vqgan = world.model("text_tokenizer"), world.model("vqgan")
    inputs = [world.pairs_folder(), world.tokens_folder(), tokenizer, vqgan]
    with stage_run("train_baseline", method, section=section, inputs=inputs, outputs=[out]) as run:
        prepared, tokenized = (
            sorted(path.name for path in folder.iterdir()) for folder in (world.pairs_folder(), world.tokens_folder())
        )
        pairs = {name: {split: world.pairs(name, split) for split in SPLITS} for name in prepared}
        tokens = {name: {split: world.tokens(name, split) for split in SPLITS} for name in tokenized}
        result = run.work / "result"
        trained = get_method(method).train(
            TrainInputs(
                pairs, params.datasets, params.settings[method], run.seed, run.work, result, run.log, device=device(),
                tokens=tokens, tokenizer=tokenizer, vqgan=vqgan,
            )
        )  # fmt: skip
        run.cost(**asdict(trained))
        run.place(result, out)


if __name__ == "__main__":
    command(main)
