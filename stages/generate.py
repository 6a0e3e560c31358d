"""Stage generate@model: every question that a system can answer, on the test pairs.   dvc repro generate@medim

in   data/pairs, models/<model>, models/vqgan
out  generated/<model>/<dataset>/<task>.parquet (dataset "all": free joint samples), side/<dataset>.parquet (log p)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from medim.diffusion.settings import SamplerSettings
from medim.generation import answer, questions
from medim.pairs import read_pairs
from medim.side_answers import SideSettings, answer_sides
from medim.system_loading import load_system
from medim.systems import TASKS
from pipeline.params import changed, read_section
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
    sampler_of: dict[str, dict[str, Any]]
    side: SideSettings

    def __post_init__(self) -> None:
        """ValueError: no such task, or a dataset whose folder is taken; ParamsError: see `sampler_for`."""
        for task in (*self.tasks, *self.sampler_of):
            if task not in TASKS:
                raise ValueError(f"no task {task!r}: there are {', '.join(TASKS)}")
            self.sampler_for(task)
        if SIDE in self.datasets:
            raise ValueError(f"a dataset cannot be called {SIDE!r}: generated/<model>/{SIDE} holds scores of sides")

    def sampler_for(self, task: str) -> SamplerSettings:
        """The sampler's settings with the changes of one task; ParamsError: they do not fit."""
        return changed(self.sampler, self.sampler_of.get(task, {}), f"generate.sampler_of.{task}")


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
        samplers = {task: params.sampler_for(task) for task in params.sampler_of}
        system = load_system(
            world.model(model), vqgan=vqgan, sampler=params.sampler, sampler_of=samplers, device=device()
        )
        parts, result = run.work / "parts", run.work / "result"
        test = {name: read_pairs(world.pairs(name, "test"), params.pairs) for name in params.datasets}
        total = 0
        for question in questions(system, test, params.tasks, params.joint):
            path = result / question.dataset / f"{question.task}.parquet"
            total += answer(system, question, run.seed, params.chunk, parts, path)
        sides = {name: read_pairs(world.pairs(name, "test"), params.side.pairs) for name in params.side.datasets}
        total += answer_sides(system, sides, run.seed, params.side.masks, params.chunk, parts, result / SIDE)
        run.cost(examples=total)
        run.place(result, out)


if __name__ == "__main__":
    command(main)
