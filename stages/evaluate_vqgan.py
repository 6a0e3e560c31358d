"""Stage evaluate_vqgan: what the image tokenizer keeps of the test pictures.   dvc repro evaluate_vqgan

in   data/pairs, models/vqgan, models/finding_reader
out  metrics/vqgan.json, figures/vqgan.png (originals above reconstructions)
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from medim.evaluation import Reference, Scores, as_json
from medim.figures import reconstruction_page, save_png
from medim.metrics.finding_reader import load_finding_reader
from medim.tokenizers.vqgan import load_vqgan
from medim.vqgan_evaluation import TokenizerEvaluation, evaluate_vqgan
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:evaluate_vqgan."""

    datasets: tuple[str, ...]
    columns: int
    zoom: int
    settings: TokenizerEvaluation


def main() -> None:
    """Evaluate the VQGAN on every dataset."""
    params = read_section("evaluate_vqgan", Section)
    world = world_from_params()
    metrics, figure, reader = world.metrics("vqgan"), world.figure("vqgan"), world.model("finding_reader")
    inputs = [world.pairs_folder(), world.model("vqgan"), reader]
    with stage_run("evaluate_vqgan", section=params, inputs=inputs, outputs=[metrics, figure]) as run:
        judge = load_finding_reader(reader).to(device())
        vqgan = load_vqgan(world.model("vqgan")).to(device())
        scores: Scores = {}
        labels, shown = {}, {}
        for name in params.datasets:
            reference = Reference(name, world.pairs(name, "test"), world.pairs(name, "train"), judge)
            found, per_label, pixels = evaluate_vqgan(vqgan, reference, params.settings, run.seed)
            scores |= found
            labels[name] = as_json(per_label)
            shown[name] = reference.test_images, pixels
        run.cost(examples=sum(len(images) for images, _ in shown.values()))
        page = {"model": "vqgan", "rows": {"MeDiM": as_json(scores)}, "findings": labels}
        (run.work / "metrics.json").write_text(json.dumps(page, indent=1, sort_keys=True) + "\n")
        save_png(reconstruction_page(shown, params.columns, params.zoom), run.work / "figure.png")
        run.place(run.work / "metrics.json", metrics)
        run.place(run.work / "figure.png", figure)


if __name__ == "__main__":
    command(main)
