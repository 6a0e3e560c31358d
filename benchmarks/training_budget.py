"""Draws what more training steps give: curves of rows that differ in their number of steps, and their scores.

    python -m benchmarks.training_budget [--world phantom] [--models medim medim_3x] [--out FOLDER] [--name NAME]

A row is a variant of MeDiM or a baseline of the world, or stands in another world's folder: `unidisc` beside
`../three/runs/phantom/unidisc`, where a clone was trained with three times the steps (`.venv/bin/dvc exp run -S
train_baseline.settings.unidisc.optim.steps=7200 evaluate@unidisc`). Reads logs/train_medim@<model>.jsonl or
train_baseline@<model>.jsonl (validation), costs/ (examples, seconds) and metrics/<model>.json (test pairs) of a world's
folder. Writes <name>.json and .png into docs/results/<world>. The abscissa is samples seen; every row has the whole
course of its own learning rate, so only the ends of the curves compare budgets. MeDiM's rows come from `phantom-full`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.sampler_report import COLOURS, score_text
from pipeline.params_file import ParamsError, load_top
from pipeline.paths import RUNS, World

NAME = "training_budget"
CURVES = {  # name of the validation scalar, behind val/<dataset>/ -> what it says
    "image_to_report": "report given its picture, nats a token",
    "report_to_image": "picture given its report, nats a code",
    "own_picture_saves": "own picture saves, nats a report",
    "own_report_saves": "own report saves, nats a picture",
    "nats_per_token": "report given its picture, nats a word",  # of report writers
}
STAGES = ("train_medim", "train_baseline")
PRIOR = "pretraining/"  # begins the names of what is logged before the steps that are counted
SCORES = (
    "image_to_report/finding_f1", "image_to_report/sentence_validity", "image_to_report/side_auroc",
    "report_to_image/finding_f1_ratio", "joint/finding_f1", "joint/sentence_validity",
)  # fmt: skip
STYLES = ("-", "--", "-.", ":")  # of datasets, again from the first where there are more
NO_SCORE: Mapping[str, float | None] = {"value": None}


@dataclass(frozen=True)
class Budget:
    """One trained row. `curves`: scalar name -> [(samples, value)]; `scores`: name -> {value, low, high, n}."""

    model: str
    samples: int
    seconds: float
    curves: Mapping[str, Sequence[tuple[int, float]]]
    scores: Mapping[str, Mapping[str, float | None]]

    @property
    def label(self) -> str:
        """In the figure: the row without its folder, and its budget."""
        return f"{self.model.rpartition('/')[2]} ({self.samples:,} samples)"

    def datasets(self) -> list[str]:
        """Those of the validation curves, in the log's order."""
        return list(dict.fromkeys(name.split("/")[1] for name in self.curves))


def read_budget(world: World, row: str) -> Budget:
    """Curves, costs and scores of one row: a model of the world, or folder of another world and model.

    Raises:
        FileNotFoundError: names what is missing and the command that makes it.
        ValueError: the log holds no validation.
    """
    folder, _, model = row.rpartition("/")
    world = World(Path(folder)) if folder else world
    trained = next((stage for stage in STAGES if world.logs(f"{stage}@{model}").is_file()), STAGES[0])
    log, costs, metrics = (
        world.logs(f"{trained}@{model}"), world.costs(f"{trained}@{model}"), world.metrics(model)
    )  # fmt: skip
    for path, stage in ((log, trained), (costs, trained), (metrics, "evaluate")):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: `.venv/bin/python -m pipeline.profile phantom-full`, then "
                f"`.venv/bin/dvc repro {stage}@{model}`"
            )
    spent = json.loads(costs.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if not any(name.startswith(PRIOR) for name in line)]
    validations = [line for line in lines if any(name.startswith("val/") for name in line)]
    if not validations:
        raise ValueError(f"{log} holds no validation: lower its optim.validate_every in params.yaml and train again")
    a_step = spent["examples"] / lines[-1]["step"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in validations:
        for name, value in line.items():
            if name.startswith("val/") and name.split("/")[2] in CURVES:
                curves.setdefault(name, []).append((round(line["step"] * a_step), float(value)))
    rows = json.loads(metrics.read_text(encoding="utf-8"))["rows"]
    values = next(iter(rows.values()))
    datasets = dict.fromkeys(name.split("/")[1] for name in curves)
    scores = {f"{d}/{s}": values[f"{d}/{s}"] for d in datasets for s in SCORES if f"{d}/{s}" in values}
    return Budget(row, int(spent["examples"]), float(spent["seconds"]), curves, scores)


def table(budgets: Sequence[Budget]) -> str:
    """Scores as Markdown, one column a row."""
    names = [f"{b.model}: {b.samples:,} samples, {b.seconds / 60:.1f} min" for b in budgets]
    lines = [f"| test pairs | {' | '.join(names)} |", "|---|" + "---|" * len(budgets)]
    scored = dict.fromkeys(name for budget in budgets for name in budget.scores)
    lines += [
        f"| {name} | " + " | ".join(score_text(b.scores.get(name, NO_SCORE)) for b in budgets) + " |" for name in scored
    ]
    return "\n".join(lines)


def draw(budgets: Sequence[Budget], world: str, out: Path) -> None:
    """A panel a curve that a row has, a colour a row, a line style a dataset. The same numbers give the same bytes."""
    found = {name.split("/")[2] for budget in budgets for name in budget.curves}
    shown = {scalar: title for scalar, title in CURVES.items() if scalar in found}
    figure = Figure(figsize=(max(6.0, 3.75 * len(shown)), 4.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{world}: validation pairs against samples seen", fontsize=12)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (scalar, title) in zip(panels, shown.items(), strict=True):
        for budget, colour in zip(budgets, COLOURS, strict=False):
            for dataset, style in zip(budget.datasets(), itertools.cycle(STYLES), strict=False):
                points = budget.curves.get(f"val/{dataset}/{scalar}", [])
                ax.plot([x / 1000 for x, _ in points], [y for _, y in points], style, color=colour, marker="o",
                        markersize=3, label=f"{budget.label}, {dataset}")  # fmt: skip
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("thousand samples", fontsize=9)
        ax.set_xscale("log", base=2)
        ax.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Software": None})


def write(world: World, models: Sequence[str], out: Path, name: str = NAME) -> str:
    """Write JSON and PNG into `out`, return the table. Raises: see `read_budget`."""
    budgets = [read_budget(world, model) for model in models]
    page: dict[str, Any] = {
        "world": world.name,
        "models": {
            b.model: {"samples": b.samples, "seconds": b.seconds, "scores": b.scores, "curves": b.curves}
            for b in budgets
        },
    }
    draw(budgets, world.name, out / f"{name}.png")
    text = json.dumps(page, indent=1, ensure_ascii=False) + "\n"
    (out / f"{name}.json").write_text(text, encoding="utf-8")
    return table(budgets)


def main() -> int:
    """Write, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", help="default: that of params.yaml")
    parser.add_argument("--models", nargs="+", default=["medim", "medim_3x"])
    parser.add_argument("--name", default=NAME, help=f"of both files; default: {NAME}")
    parser.add_argument("--out", type=Path, help="folder; default: docs/results/<world>")
    given = parser.parse_args()
    if len(given.models) > len(COLOURS):
        parser.error(f"--models takes at most {len(COLOURS)} rows, got {len(given.models)}")
    try:
        world = World(RUNS / (given.world or load_top().world))
        print(write(world, given.models, given.out or world.results(), given.name))
    except (FileNotFoundError, ValueError, ParamsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
