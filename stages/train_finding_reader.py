"""Stage train_finding_reader: phantoms of its own seed -> the judge of pictures.   dvc repro train_finding_reader

out  models/finding_reader, metrics/finding_reader.json (macro finding F1 on held-out phantoms, per domain)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from medim.data import get_domain
from medim.metrics.finding_reader import ReaderSettings, train_finding_reader
from medim.training import Optimisation
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:train_finding_reader."""

    domains: tuple[str, ...]
    reader: ReaderSettings
    seed_offset: int
    optim: Optimisation


def main() -> None:
    """Train the reader."""
    params = read_section("train_finding_reader", Section)
    world = world_from_params()
    out, metrics = world.model("finding_reader"), world.metrics("finding_reader")
    with stage_run("train_finding_reader", section=params, inputs=[], outputs=[out, metrics]) as run:
        scores: dict[str, float] = {}

        def log(step: int, values: Mapping[str, float]) -> None:
            run.log(step, values)
            scores.update({key.removeprefix("val/"): value for key, value in values.items() if key.startswith("val/")})

        result = train_finding_reader(
            {name: get_domain(name) for name in params.domains}, params.reader, optim=params.optim,
            seed=run.seed + params.seed_offset, work=run.work, out=run.work / "result", on_log=log, device=device(),
        )  # fmt: skip
        parameters = sum(p.numel() for p in result.averaged.parameters())
        run.cost(examples=params.optim.steps * params.optim.batch_size, parameters=parameters)
        page = {"model": "finding_reader", "held_out": params.reader.held_out, **scores}
        (run.work / "metrics.json").write_text(json.dumps(page, indent=1) + "\n")
        run.place(run.work / "metrics.json", metrics)
        run.place(run.work / "result", out)


if __name__ == "__main__":
    command(main)
