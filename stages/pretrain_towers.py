"""Stage pretrain_towers: token pairs -> encoders of picture and report.   dvc repro pretrain_towers

The towers of train_medim.settings.backbone, trained contrastively; where that section says null there is nothing to do.

in   data/tokens/<dataset>, models/text_tokenizer, models/vqgan
out  models/towers
"""

from __future__ import annotations

from dataclasses import dataclass

from medim.backbones.mllm import BackboneSettings
from medim.medim_training import TokenData, read_tokens
from medim.tokenizers.vqgan import load_vqgan
from medim.tower_pretraining import TowerTraining, pretrain_towers, save_towers
from medim.training import Optimisation
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:pretrain_towers; the towers themselves are train_medim's."""

    datasets: tuple[str, ...]
    training: TowerTraining
    optim: Optimisation


def main() -> None:
    """Pretrain the towers."""
    params = read_section("pretrain_towers", Section)
    towers = read_section("train_medim.settings.backbone", BackboneSettings).towers
    world = world_from_params()
    out, tokenizer = world.model("towers"), world.model("text_tokenizer")
    inputs = [*(world.tokens_folder(name) for name in params.datasets), tokenizer, world.model("vqgan")]
    section = {"pretrain_towers": params, "towers": towers}
    with stage_run("pretrain_towers", section=section, inputs=inputs, outputs=[out]) as run:
        result = run.work / "result"
        if towers is None:
            save_towers(None, None, result)
        else:
            train = {name: read_tokens(world.tokens(name, "train")) for name in params.datasets}
            val = {name: read_tokens(world.tokens(name, "val")) for name in params.datasets}
            data = TokenData(train, val, tokenizer, load_vqgan(world.model("vqgan")).quantize.weight)
            trained = pretrain_towers(
                data, towers, params.training, params.optim, seed=run.seed, work=run.work, out=result, on_log=run.log,
                device=device(),
            ).averaged  # fmt: skip
            parameters = sum(p.numel() for p in trained.parameters())
            run.cost(examples=params.optim.steps * params.optim.batch_size, parameters=parameters)
        run.place(result, out)


if __name__ == "__main__":
    command(main)
