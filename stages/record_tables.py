"""Stage record_tables: metrics -> the paper's tables and figures, on disk and in MLflow.   dvc repro record_tables

in   metrics/*.json, generated, data/{pairs,filtered}, models/finding_reader, reader_key.json, sheets from readers
out  tables/<id>.{json,md,csv,html}, figures/paper/*.png, summary/{chest,pathology}.json, mlflow/receipt-<world>.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medim import tables
from medim.bar_charts import CHARTS, bar_chart
from medim.evaluation import Reference
from medim.figures import save_png
from medim.further_rows import with_further_rows
from medim.metrics.finding_reader import load_finding_reader
from medim.mission import Goal, mission_rows, write_summaries
from medim.paper_figures import FigureSettings, paper_figures
from medim.reader_results import ReaderRatings, reader_results
from medim.report_filter import filter_notes
from medim.table_cells import build_table, read_gains, read_metrics
from medim.table_render import write_all
from pipeline.params import read_section
from pipeline.params_file import PARAMS, load_top, read_yaml
from pipeline.paths import world_from_params
from pipeline.repro_record import Served, record_repro
from pipeline.stage import command, stage_run
from pipeline.tracking import print_links, sync

SERVED = Served("medim", "medim.serving:open_generator", ("medim", "vqgan"), "generate")


@dataclass(frozen=True)
class Section:
    """params.yaml:record_tables: the datasets that stand where the paper's stood, promises, and the figures."""

    chest: str | None
    pathology: str | None
    ood: str | None
    drawn: bool
    notes: tuple[str, ...]
    mission: tuple[Goal, ...] | None
    figures: FigureSettings
    reader_study: ReaderRatings


def main() -> None:
    """Write tables and figures, then show them in MLflow."""
    params, world = read_section("record_tables", Section), world_from_params()
    reader, key, ratings = world.model("finding_reader"), world.reader_key(), Path(params.reader_study.ratings)
    inputs = [*map(world.root.joinpath, ("metrics", "generated", "data/pairs", "data/filtered")), reader, key, ratings]
    outputs = {"tables": world.tables(), "figures": world.figures() / "paper", "summary": world.summary()}
    with stage_run("record_tables", section=params, inputs=inputs, outputs=[*outputs.values()], live=False) as run:
        models, folder = read_yaml(PARAMS)["evaluate"]["models"], world.root / "metrics"
        readers, gains = reader_results(params.reader_study, key, run.seed), read_gains(folder)
        metrics = {**read_metrics(folder, [*models, "vqgan", "report_errors"]), **readers.metrics}
        shown = tables.World(load_top().profile, params.chest, params.pathology, params.ood, params.drawn)
        for table in tables.TABLES:
            built = build_table(with_further_rows(table, metrics, models, shown), metrics, shown, gains)
            if table.id == "mission":
                built["goals"] = mission_rows(params.mission or (), built, metrics)
                write_summaries(built, {"chest": params.chest, "pathology": params.pathology}, run.work / "summary")
            built |= {"readers": readers.details} if table.id == "figure5a" else {}
            write_all(built, [*params.notes, *filter_notes(world.filtered())], run.work / "tables")
            if table.id in CHARTS and (chart := bar_chart(built)) is not None:
                save_png(chart, run.work / "figures" / f"{table.id}.png")
        judge = load_finding_reader(reader)
        names = [name for name in (params.chest, params.pathology) if name is not None]
        references = {n: Reference(n, world.pairs(n, "test"), world.pairs(n, "train"), judge) for n in names}
        for name, page in paper_figures(world.root / "generated", references, params.figures).items():
            save_png(page, run.work / "figures" / f"{name}.png")
        for name, place in outputs.items():
            run.place(run.work / name, place)
    record_repro(world, "record_tables", SERVED)
    print_links(sync([world]))


if __name__ == "__main__":
    command(main)
