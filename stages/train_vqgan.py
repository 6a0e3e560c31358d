"""Stage train_vqgan: training pictures of all domains -> image tokenizer.   dvc repro train_vqgan

in   data/pairs
out  models/vqgan, figures/vqgan_training.png (originals above reconstructions; drawn early, again at the end)
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from medim.pairs import load_images, read_pairs
from medim.tokenizers.vqgan_training import VQGANTraining, train_vqgan
from medim.training import Optimisation
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:train_vqgan."""

    datasets: tuple[str, ...]
    val_pairs: int
    training: VQGANTraining
    optim: Optimisation


def main() -> None:
    """Train the VQGAN."""
    params = read_section("train_vqgan", Section)
    world = world_from_params()
    out, sheet = world.model("vqgan"), world.figure("vqgan_training")
    with stage_run("train_vqgan", section=params, inputs=[world.pairs_folder()], outputs=[out, sheet]) as run:
        images = {name: load_images(read_pairs(world.pairs(name, "train"))) for name in params.datasets}
        val = {name: load_images(read_pairs(world.pairs(name, "val"), params.val_pairs)) for name in params.datasets}

        def show(step: int, picture: Image.Image) -> None:
            picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(
                run.work / "sheet.png"
            )
            run.place(run.work / "sheet.png", sheet)
            print(f"train_vqgan: sheet of step {step} in {sheet}", flush=True)

        result = train_vqgan(
            images, val, params.training, params.optim, seed=run.seed, work=run.work, out=run.work / "result",
            on_log=run.log, on_sheet=show, device=device(),
        )  # fmt: skip
        parameters = sum(p.numel() for p in result.averaged.parameters())
        run.cost(examples=params.optim.steps * params.optim.batch_size, parameters=parameters)
        run.place(run.work / "result", out)


if __name__ == "__main__":
    command(main)
