"""Stage prepare_data: phantoms drawn, real folders imported -> pairs.   dvc repro prepare_data

in   nothing for drawn data; `source` for imported data
out  data/pairs/<dataset>/{train,val,test}.parquet and, for imported data, quarantine.csv
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medim.data.preparation import Source, prepare_dataset
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:prepare_data."""

    source: str
    image_size: int
    datasets: Mapping[str, Source]


def main() -> None:
    """Prepare every dataset."""
    params = read_section("prepare_data", Section)
    world = world_from_params()
    out = world.pairs_folder()
    inputs = [Path(params.source)]
    with stage_run("prepare_data", section=params, inputs=inputs, outputs=[out], use_torch=False) as run:
        total = 0
        for dataset, source in params.datasets.items():
            counts = prepare_dataset(dataset, source, params.image_size, run.seed, run.work / "pairs" / dataset)
            total += sum(counts.values())
        run.cost(examples=total)
        run.place(run.work / "pairs", out)


if __name__ == "__main__":
    command(main)
