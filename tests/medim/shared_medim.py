"""Trains the tiny MeDiM with however many processes torchrun has started.

python -m torch.distributed.run --standalone --nproc-per-node=2 shared_medim.py FOLDER PARALLEL
"""

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import tiny_medim as tiny
import torch

from medim.backbones.code_refiner import RefinerSettings
from medim.backbones.towers import TowerSettings
from medim.distributed import current_ranks, process_group
from medim.medim_training import train_medim
from medim.pretrained import Beginning

TOWERS = TowerSettings(
    code_width=4, channels=4, blocks=1, evidence=8, report_width=8, report_blocks=1, summary=8
)  # frozen, and one of their numbers cannot be sharded


def main(folder: Path, parallel: str) -> None:
    """Ten steps with validation; the losses of all steps and the model folder."""
    backbone = replace(tiny.BACKBONE, gradient_checkpointing=True, towers=TOWERS, code_refiner=RefinerSettings(8, 1))
    losses: dict[str, list[float]] = defaultdict(list)

    def log(_step: int, values) -> None:
        for name, value in values.items():
            losses[name].append(value)

    with process_group(torch.device("cpu"), parallel) as device:
        data = tiny.data(folder / f"tokens_{current_ranks().rank}")
        train_medim(
            data, tiny.settings(backbone), tiny.OPTIM, seed=7, work=folder / "work", out=folder / "out", on_log=log,
            beginning=Beginning(), device=device,
        )  # fmt: skip
        first = current_ranks().first
    if first:
        torch.save({name: torch.tensor(values) for name, values in losses.items()}, folder / "losses.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
