"""Stage generate@model: every question that a system can answer, on the test pairs.   dvc repro generate@medim

in   data/pairs, models/<model>, models/vqgan
out  generated/<model>/<dataset>/<task>.parquet (dataset "all" for free joint samples),
     generated/<model>/side/<dataset>.parquet (scores of reports with and without their sides exchanged)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from medim.diffusion.settings import SamplerSettings
from medim.generation import answer, questions
from medim.pairs import read_pairs
from medim.side_answers import SideSettings, score_sides
from medim.system_loading import load_system
from medim.systems import TASKS, ReportLikelihood
from pipeline.params import read_section
from pipeline.paths import SIDE, world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:generate."""

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    tasks: tuple[str, ...]
    pairs: int
    joint: int
    chunk: int
    sampler: SamplerSettings
    side: SideSettings

    def __post_init__(self) -> None:
        """Check tasks and datasets.

        Raises:
            ValueError: names a task that no system answers, or a dataset whose folder is taken.
        """
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"no task {task!r}: there are {', '.join(TASKS)}")
        if SIDE in self.datasets:
            raise ValueError(f"a dataset cannot be called {SIDE!r}: generated/<model>/{SIDE} holds scores of sides")


def main() -> None:
    """Ask one system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    params = read_section("generate", Section)
    world = world_from_params()
    out, vqgan = world.generated(model), world.model("vqgan")
    inputs = [world.pairs_folder(), world.model(model), vqgan]
    with stage_run("generate", model, section=params, inputs=inputs, outputs=[out]) as run:
        system = load_system(world.model(model), vqgan=vqgan, sampler=params.sampler, device=device())
        test = {name: read_pairs(world.pairs(name, "test"), params.pairs) for name in params.datasets}
        total = 0
        for question in questions(system, test, params.tasks, params.joint):
            path = run.work / "result" / question.dataset / f"{question.task}.parquet"
            total += answer(system, question, run.seed, params.chunk, run.work / "parts", path)
        if isinstance(system, ReportLikelihood):
            for name in params.side.datasets:
                pairs = read_pairs(world.pairs(name, "test"), params.side.pairs)
                path = run.work / "result" / SIDE / f"{name}.parquet"
                work, masks = run.work / "parts", params.side.masks
                total += score_sides(system, name, pairs, run.seed, masks, params.chunk, work, path)
        run.cost(examples=total)
        run.place(run.work / "result", out)


if __name__ == "__main__":
    command(main)
