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
from medim.evaluation import Reference
from medim.figures import save_png
from medim.metrics.finding_reader import load_finding_reader
from medim.synthesis import Origin, PairScorer, SynthesisSettings, pair_generator, synthesize, write_held_out
from medim.synthesis_card import CardSettings, contact_sheet, data_card
from medim.synthesis_prompts import PromptWords, asked_prompts, check_prompts, prompts_of, training_prompts
from medim.system_loading import load_system
from pipeline.params import changed, read_section
from pipeline.params_file import PARAMS, read_yaml
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, content_hash, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:synthesize_pairs."""

    generators: tuple[str, ...]
    prompts: dict[str, PromptWords]
    settings: SynthesisSettings
    sampler: Mapping[str, Any]
    card: CardSettings


def main() -> None:
    """Ask one generator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", required=True)
    name = parser.parse_args().generator
    params, world = read_section("synthesize_pairs", Section), world_from_params()
    usual = changed(read_section("generate.sampler", SamplerSettings), params.sampler, "synthesize_pairs.sampler")
    mine = read_yaml(PARAMS)["generate"]["sampler_of_model"][name]
    sampler = changed(usual, mine, f"generate.sampler_of_model.{name}")
    out, figures, model = world.synthetic(name), world.figures() / f"synthetic_{name}", world.model(name)
    vqgan, reader = world.model("vqgan"), world.model("finding_reader")
    inputs = [world.pairs_folder(), model, vqgan, reader]
    section = asdict(params) | {"generators": None, "sampler": sampler}
    with stage_run("synthesize_pairs", name, section=section, inputs=inputs, outputs=[out, figures]) as run:
        generator = pair_generator(load_system(model, vqgan=vqgan, sampler=sampler, device=device()), name)
        judge, result, made_by = load_finding_reader(reader).to(device()), run.work / "result", content_hash(model)
        references, held_out, total = {}, {}, 0
        for dataset, words in params.prompts.items():
            train = world.pairs(dataset, "train")
            references[dataset] = Reference(dataset, world.pairs(dataset, "val"), train, judge)
            prompts, known = prompts_of(words), training_prompts(train)
            check_prompts(dataset, prompts, known)
            asked = asked_prompts(prompts, params.settings.frequency, known, params.settings.pairs)
            scorer = PairScorer(references[dataset], train)
            origin = Origin(name, made_by, dataset, run.seed)
            path = result / f"{dataset}.parquet"
            total += synthesize(generator, asked, scorer, origin, params.settings, run.work / "shards", path)
            held_out[dataset] = scorer.held_out()
            page = contact_sheet(path, generator.row, references[dataset], params.card)
            save_png(page, run.work / "figures" / f"{dataset}.png")
        write_held_out(result, held_out)
        facts = {"model_hash": made_by, "seed": run.seed, "sampler": asdict(sampler)} | asdict(params.settings)
        card = data_card(generator.row, facts, result, references, params.card, run.seed)
        (result / "card.md").write_text(card, encoding="utf-8")
        run.cost(examples=total)
        run.place(result, out)
        run.place(run.work / "figures", figures)


if __name__ == "__main__":
    command(main)
