"""Stage prepare_data: phantoms drawn, real folders imported -> pairs.   dvc repro prepare_data

in   nothing for drawn data; `source` for imported data
out  data/pairs/<dataset>/{train,val,test}.parquet and, for imported data, quarantine.csv

Several workers, this machine's or a Ray cluster's: docs/scale.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medim.data.folder import Decoded, FolderSource
from medim.data.preparation import DrawnSource, Source, prepare_dataset
from medim.data.preparation_shards import drawn_jobs, iter_pictures, make_drawn, make_pictures, write_items
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.shard_engines import Engine
from pipeline.shards import cut, stage_engine, stage_shards
from pipeline.stage import StageRun, command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:prepare_data."""

    source: str
    image_size: int
    datasets: Mapping[str, Source]


def by_workers(run: StageRun, engine: Engine, params: Section, dataset: str) -> Iterator[Decoded] | None:
    """Let workers draw the splits, or decode the pictures, which are returned in order."""
    source, size = params.datasets[dataset], params.image_size
    if isinstance(source, DrawnSource):
        if not engine.asked:
            return None  # a split is one job: a worker a thread would draw no sooner
        jobs = drawn_jobs(dataset, source, Path(params.source), run.work / "pairs" / dataset)
        stage_shards(run, engine, make_drawn, {"size": size, "seed": run.seed}, jobs, use_torch=False)
        return None
    if not isinstance(source, FolderSource):
        print(f"prepare_data: {dataset}: studies and slides are read by one process", flush=True)
        return None
    items, parts = run.work / "items" / f"{dataset}.parquet", run.work / "pictures" / dataset
    write_items(dataset, source, run.seed, items)
    jobs = cut(items, parts / "all.parquet", parts, engine.rows)
    settings = {"size": size, "background": source.background, "fit": source.fit}
    stage_shards(run, engine, make_pictures, settings, jobs, use_torch=False)
    return iter_pictures([part for _, part, _ in jobs])


def main() -> None:
    """Prepare every dataset."""
    params, engine = read_section("prepare_data", Section), stage_engine(use_torch=False)
    world = world_from_params()
    out = world.pairs_folder()
    inputs = [Path(params.source)]
    with stage_run("prepare_data", section=params, inputs=inputs, outputs=[out], use_torch=False) as run:
        total = 0
        for dataset, source in params.datasets.items():
            pictures = by_workers(run, engine, params, dataset) if engine.splits else None
            folder = run.work / "pairs" / dataset
            counts = prepare_dataset(dataset, source, params.image_size, run.seed, folder, pictures)
            total += sum(counts.values())
        run.cost(examples=total)
        run.place(run.work / "pairs", out)


if __name__ == "__main__":
    command(main)
