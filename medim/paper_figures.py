"""The paper's Figures 4, 7 and 8 from what the systems generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from medim.evaluation import Reference
from medim.figures import Panel, figure4, figure7, figure8, panel_of
from medim.further_rows import is_variant, unnamed
from medim.generation import read_generated
from medim.systems import Sample
from medim.tables import TABLES, Table, get_table

TASK = "report_to_image"


@dataclass(frozen=True)
class FigureSettings:
    """How much the figures show."""

    prompts: int  # rows a dataset in figures 4 and 7
    cases: int  # panels of figure 8
    columns: int  # of figure 8
    side: int  # pixels a picture takes at most


def rows_of(generated: Path, model: str, dataset: str, task: str) -> dict[str, list[Sample]]:
    """Table row -> a model's samples; empty where it does not answer the task."""
    path = generated / model / dataset / f"{task}.parquet"
    rows: dict[str, list[Sample]] = {}
    for sample in read_generated(path) if path.is_file() else []:
        rows.setdefault(sample.row, []).append(sample)
    return rows


def same_prompts(
    generated: Path, names: Mapping[str, str], references: Mapping[str, Reference], count: int
) -> dict[str, list[Panel]]:
    """System -> panels of the first `count` reports of each dataset; systems that draw no pictures are left out.

    Args:
        names: model -> how its only row is called; a model with several rows keeps their names.
    """
    panels: dict[str, list[Panel]] = {}
    for dataset in references:
        for model, name in names.items():
            rows = rows_of(generated, model, dataset, TASK)
            for row, samples in rows.items():
                shown = [panel_of(sample, references)[0] for sample in samples[:count]]
                panels.setdefault(name if len(rows) == 1 else row, []).extend(shown)
    return panels


def paper_figures(
    generated: Path, references: Mapping[str, Reference], settings: FigureSettings
) -> dict[str, Image.Image]:
    """figure4 (all systems, same prompts), figure7 (ablation, same prompts), figure8 (MeDiM's worst cases).

    Figures 4 and 7 compare: where fewer than two systems (or variants) drew pictures they are left out.

    Args:
        generated: folder with one folder a model.
        references: dataset -> its real pairs; figure 8 looks at all their answers.
    """
    models = sorted(folder.name for folder in generated.iterdir() if folder.is_dir())
    systems, ablation = shown_names(generated, models, references)
    cases = [
        panel_of(sample, references)
        for dataset in references
        for task in (TASK, "image_to_report")
        for sample in _only(rows_of(generated, "medim", dataset, task))
    ]
    figures = {"figure8": figure8(cases, settings.columns, settings.cases, settings.side)}
    for name, names, figure in (("figure4", systems, figure4), ("figure7", ablation, figure7)):
        panels = same_prompts(generated, names, references, settings.prompts)
        if len(panels) > 1:
            figures[name] = figure(panels, settings.side)
    return figures


def shown_names(
    generated: Path, models: Sequence[str], references: Mapping[str, Reference]
) -> tuple[dict[str, str], dict[str, str]]:
    """(systems, rows of the ablation): model -> its name, in the order of models; further training seeds are neither.

    Args:
        generated: folder with one folder a model.
        models: those that were run.
        references: dataset -> its real pairs.
    """
    known = _names([table for table in TABLES if table.id != "table4"], models) | {"trivial": "trivial"}
    variants, further = _further(generated, models, references)
    systems = known | further
    return {m: systems[m] for m in models if m in systems}, _names([get_table("table4")], models) | variants


def _names(tables: Sequence[Table], models: Sequence[str]) -> dict[str, str]:
    """Model -> its first row's name in these tables, for models that were run; the trivial rows are left out."""
    rows = [row for table in tables for row in table.rows]
    found: dict[str, str] = {}
    for row in rows:
        for source in row.sources:
            if source.model in models and source.model != "trivial":
                found.setdefault(source.model, row.name)
    return found


def _further(
    generated: Path, models: Sequence[str], references: Mapping[str, Reference]
) -> tuple[dict[str, str], dict[str, str]]:
    """(variants, systems) that no table names and that draw pictures, each with its name, see medim.further_rows."""
    variants: dict[str, str] = {}
    systems: dict[str, str] = {}
    for model in unnamed(models):
        rows = [row for dataset in references for row in rows_of(generated, model, dataset, TASK)]
        if rows and is_variant(rows):
            variants[model] = model
        elif rows:
            systems[model] = rows[0]
    return variants, systems


def _only(rows: Mapping[str, list[Sample]]) -> list[Sample]:
    return next(iter(rows.values()), [])
