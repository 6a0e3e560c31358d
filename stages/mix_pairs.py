"""Stage mix_pairs: the training pairs of each arm of the downstream study.   dvc repro mix_pairs

in   data/pairs, synthetic/<generator>
out  mixes/<arm>/<dataset>.parquet, mixes/<arm>/mix.json (counts of each source)

An arm whose pairs stay the same, byte by byte, is not trained again when other synthetic pairs change.
"""

from __future__ import annotations

from dataclasses import dataclass

from medim.downstream import Mix, write_mix
from pipeline.params import read_section
from pipeline.params_file import PARAMS, read_yaml
from pipeline.paths import world_from_params
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:mix_pairs."""

    datasets: tuple[str, ...]
    pairs: int
    mixes: dict[str, Mix]


def main() -> None:
    """Write the mix of every arm that is trained."""
    params, world = read_section("mix_pairs", Section), world_from_params()
    arms: list[str] = read_yaml(PARAMS)["train_downstream"]["arms"]
    synthetic = {name: world.synthetic(name) for arm in arms for name in params.mixes[arm].generators}
    out, section = world.mixes(), {"params": params, "arms": arms}
    inputs = [world.pairs_folder(), *synthetic.values()]
    with stage_run("mix_pairs", section=section, inputs=inputs, outputs=[out], use_torch=False, live=False) as run:
        real = {dataset: world.pairs(dataset, "train") for dataset in params.datasets}
        written = 0
        for arm in arms:
            mix, folder = params.mixes[arm], run.work / "mixes" / arm
            written += write_mix(mix, params.pairs, real, synthetic, run.seed + mix.seed_offset, folder)
        run.cost(examples=written)
        run.place(run.work / "mixes", out)


if __name__ == "__main__":
    command(main)
