"""Stage synthesize_pairs@generator: prompts -> scored synthetic pairs.   dvc repro synthesize_pairs@medim

in   data/pairs, models/<generator>, models/vqgan, models/finding_reader
out  synthetic/<generator>/{<dataset>.parquet, held_out.json, card.md}, figures/synthetic_<generator>/<dataset>.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medim.diffusion.settings import SamplerSettings
from medim.generation_shards import system_values
from medim.metrics.qwen_judge import QwenSettings
from medim.synthesis import SynthesisSettings, write_held_out
from medim.synthesis_card import CardSettings, data_card, write_sheets
from medim.synthesis_prompts import PromptWords, prompts_of
from medim.synthesis_shards import make_pairs, maker_values, open_maker
from pipeline.params import changed, read_section
from pipeline.params_file import PARAMS, read_yaml
from pipeline.paths import SPLITS, world_from_params
from pipeline.resources import device
from pipeline.shards import stage_engine, stage_shards
from pipeline.stage import command, content_hash, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:synthesize_pairs."""

    generators: tuple[str, ...]
    prompts: dict[str, PromptWords]
    settings: SynthesisSettings
    judge: QwenSettings | None
    sampler: Mapping[str, Any]
    card: CardSettings


def main() -> None:
    """Ask one generator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", required=True)
    name = parser.parse_args().generator
    params, world, engine = read_section("synthesize_pairs", Section), world_from_params(), stage_engine()
    usual = changed(read_section("generate.sampler", SamplerSettings), params.sampler, "synthesize_pairs.sampler")
    mine = read_yaml(PARAMS)["generate"]["sampler_of_model"][name]
    sampler = changed(usual, mine, f"generate.sampler_of_model.{name}")
    out, figures, model = world.synthetic(name), world.figures() / f"synthetic_{name}", world.model(name)
    vqgan, reader = world.model("vqgan"), world.model("finding_reader")
    inputs = [world.pairs_folder(), model, vqgan, reader]
    section = asdict(params) | {"generators": None, "sampler": sampler}
    with stage_run("synthesize_pairs", name, section=section, inputs=inputs, outputs=[out, figures]) as run:
        result, made_by = run.work / "result", content_hash(model)
        prompts = {dataset: prompts_of(words) for dataset, words in params.prompts.items()}
        values = maker_values(
            system=system_values(model, vqgan, sampler, {}, device()), reader=reader, origin=(name, made_by),
            seed=run.seed, prompts=prompts, settings=params.settings, work=run.work, judge=params.judge,
            files={dataset: {split: world.pairs(dataset, split) for split in SPLITS} for dataset in prompts},
        )  # fmt: skip
        maker = open_maker(**values)
        scorers = {dataset: maker.asked(dataset).scorer for dataset in prompts}  # a wrong prompt ends it here
        if not engine.in_process:
            stage_shards(run, engine, make_pairs, values, maker.jobs())
        made = {dataset: maker.write(dataset, result / f"{dataset}.parquet") for dataset in prompts}
        references = {dataset: scorer.reference for dataset, scorer in scorers.items()}
        write_sheets(result, maker.generator.row, references, params.card, run.work / "figures")
        write_held_out(result, {dataset: scorer.held_out() for dataset, scorer in scorers.items()})
        facts = {"model_hash": made_by, "seed": run.seed, "sampler": asdict(sampler)} | asdict(params.settings)
        card = data_card(maker.generator.row, facts, result, references, params.card, run.seed)
        (result / "card.md").write_text(card, encoding="utf-8")
        run.cost(examples=sum(made.values()))
        run.place(result, out)
        run.place(run.work / "figures", figures)


if __name__ == "__main__":
    command(main)
