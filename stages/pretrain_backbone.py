"""Stage pretrain_backbone: captioned pictures -> the decoder's prior.   dvc repro pretrain_backbone

The stand-in for Liquid's pretraining: the decoder of train_medim, trained autoregressively over both modalities.

in   data/tokens/<dataset>, models/text_tokenizer
out  models/backbone
"""

from __future__ import annotations

from dataclasses import dataclass

from medim.backbone_pretraining import PretrainingSettings, as_prior, pretrain_backbone
from medim.backbones.mllm import BackboneSettings
from medim.medim_training import TokenData, read_tokens
from medim.tokenizers.vqgan import load_vqgan
from medim.training import Optimisation
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:pretrain_backbone; the decoder itself is train_medim's."""

    datasets: tuple[str, ...]
    caption_first: float
    text_weight: float
    image_weight: float
    val_pairs: int
    optim: Optimisation


def main() -> None:
    """Pretrain the decoder."""
    params = read_section("pretrain_backbone", Section)
    backbone = read_section("train_medim.settings.backbone", BackboneSettings)
    world = world_from_params()
    out, tokenizer = world.model("backbone"), world.model("text_tokenizer")
    inputs = [*(world.tokens_folder(name) for name in params.datasets), tokenizer, world.model("vqgan")]
    settings = PretrainingSettings(
        backbone, params.caption_first, params.text_weight, params.image_weight, params.val_pairs
    )
    section = {"pretrain_backbone": params, "backbone": as_prior(backbone)}
    with stage_run("pretrain_backbone", section=section, inputs=inputs, outputs=[out]) as run:
        train = {name: read_tokens(world.tokens(name, "train")) for name in params.datasets}
        val = {name: read_tokens(world.tokens(name, "val"), params.val_pairs) for name in params.datasets}
        data = TokenData(train, val, tokenizer, load_vqgan(world.model("vqgan")).quantize.weight)
        result = pretrain_backbone(
            data, settings, params.optim, seed=run.seed, work=run.work, out=run.work / "result", on_log=run.log,
            device=device(),
        )  # fmt: skip
        parameters = sum(p.numel() for p in result.averaged.parameters())
        run.cost(examples=params.optim.steps * params.optim.batch_size, parameters=parameters)
        run.place(run.work / "result", out)


if __name__ == "__main__":
    command(main)
