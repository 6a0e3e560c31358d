"""Stage generate@model: every question that a system can answer, on the test pairs.   dvc repro generate@medim

in   data/pairs, models/<model>, models/vqgan
out  generated/<model>/<dataset>/<task>.parquet (dataset "all": free joint samples), side/<dataset>.parquet (log p)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from medim.diffusion.settings import SamplerSettings
from medim.generation import questions
from medim.generation_shards import answer_all, answer_jobs, make_answers, open_system, system_values
from medim.pairs import read_pairs
from medim.side_answers import SideSettings
from medim.systems import TASKS, ReportLikelihood, check_tasks
from pipeline.params import changed, read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.shards import stage_engine, stage_shards
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:generate. `sampler_of_model` holds, per model, what differs whatever the task."""

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    tasks: tuple[str, ...]
    pairs: int
    joint: int
    chunk: int
    sampler: SamplerSettings
    sampler_of: dict[str, dict[str, Any]]
    sampler_of_model: dict[str, dict[str, Any]]
    side: SideSettings

    def __post_init__(self) -> None:
        """ValueError: no such task; ParamsError: see the methods below."""
        check_tasks((*self.tasks, *self.sampler_of))
        for section in (self, *map(self.of_model, self.sampler_of_model)):
            section.samplers()

    def samplers(self) -> dict[str, SamplerSettings]:
        """Task -> its sampler; ParamsError: changes that do not fit."""
        return {t: changed(self.sampler, self.sampler_of.get(t, {}), f"generate.sampler_of.{t}") for t in TASKS}

    def of_model(self, model: str) -> Section:
        """The same with the changes of one model laid over `sampler` and over every task's; ParamsError: as above."""
        mine, place = self.sampler_of_model[model], f"generate.sampler_of_model.{model}"
        tasks = {task: changes | mine for task, changes in self.sampler_of.items()}
        return replace(self, sampler=changed(self.sampler, mine, place), sampler_of=tasks, sampler_of_model={})


def main() -> None:
    """Ask one system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model, engine, world = parser.parse_args().model, stage_engine(), world_from_params()
    params = read_section("generate", Section).of_model(model)
    pairs, folder, vqgan, out = world.pairs_folder(), world.model(model), world.model("vqgan"), world.generated(model)
    values = system_values(folder, vqgan, params.sampler, params.samplers(), device())
    with stage_run("generate", model, section=params, inputs=[pairs, folder, vqgan], outputs=[out]) as run:
        system, parts, result = open_system(**values), run.work / "parts", run.work / "result"
        files = {name: world.pairs(name, "test") for name in (*params.datasets, *params.side.datasets)}
        test, sides = ({n: read_pairs(files[n], part.pairs) for n in part.datasets} for part in (params, params.side))
        asked = questions(system, test, params.tasks, params.joint)
        how = {"seed": run.seed, "masks": params.side.masks, "chunk": params.chunk}
        if engine.hands_out(slow=isinstance(system, ReportLikelihood)):  # those that answer in many evaluations
            jobs = answer_jobs(system, asked, sides, files, params.chunk, parts)
            stage_shards(run, engine, make_answers, {"system": values, **how}, jobs)
        run.cost(examples=answer_all(system, asked, sides, parts=parts, out=result, **how))
        run.place(result, out)


if __name__ == "__main__":
    command(main)
