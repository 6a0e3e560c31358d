"""Stage train_medim@variant: token pairs -> MeDiM.   dvc repro train_medim@medim

in   data/tokens, models/text_tokenizer, models/vqgan, models/backbone, models/towers
out  models/<variant>
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medim.distributed import PARALLEL, process_group
from medim.medim_training import MeDiMSettings, TokenData, read_tokens, train_medim
from medim.pretrained import Beginning, Start
from medim.tokenizers.vqgan import load_vqgan
from medim.training import Optimisation
from pipeline.params import changed, read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command
from pipeline.stage_processes import shared_stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:train_medim. `changes` holds, per variant, what differs from the rest of the section."""

    variants: tuple[str, ...]
    datasets: tuple[str, ...]
    pretrained: bool
    checkpoint: Start | None
    seed_offset: int
    settings: MeDiMSettings
    optim: Optimisation
    changes: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        """See `Opening.check`."""
        self.settings.opening.check(self.optim.steps)


def start(params: Section, backbone: Path) -> Start | None:
    """Where the decoder's weights come from: nowhere, a real checkpoint, or our own prior."""
    if not params.pretrained:
        return None
    return params.checkpoint or Start(source=backbone, layers=None, final_norm=None, image_rows=None)


def main() -> None:
    """Train one variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--parallel", choices=PARALLEL, default="copies", help="what torchrun's processes hold")
    arguments = parser.parse_args()
    variant = arguments.variant
    base, world = read_section("train_medim", Section), world_from_params()
    params = changed(base, base.changes[variant], f"train_medim.changes.{variant}")
    names = (variant, "text_tokenizer", "backbone", "towers", "vqgan")
    out, tokenizer, backbone, towers, vqgan = map(world.model, names)
    inputs = [world.tokens_folder(), tokenizer, backbone, towers, vqgan]
    with shared_stage_run("train_medim", variant, section=params, inputs=inputs, outputs=[out]) as run:
        train = {name: read_tokens(world.tokens(name, "train")) for name in params.datasets}
        val = {name: read_tokens(world.tokens(name, "val"), params.settings.val_pairs) for name in params.datasets}
        data = TokenData(train, val, tokenizer, load_vqgan(vqgan).quantize.weight)
        with process_group(device(), arguments.parallel) as own:
            result = train_medim(
                data, params.settings, params.optim, seed=run.seed + params.seed_offset, work=run.work,
                out=run.work / "result", on_log=run.log, device=own,
                beginning=Beginning(start(params, backbone), towers), extra={"variant": variant},
            )  # fmt: skip
        parameters = sum(p.numel() for p in result.averaged.parameters())
        run.cost(examples=params.optim.steps * params.optim.batch_size, parameters=parameters)
        run.place(run.work / "result", out)


if __name__ == "__main__":
    command(main)
