"""Draws what more training steps give: curves of MeDiM rows that differ in their number of steps, and their scores.

    python -m benchmarks.training_budget [--world phantom] [--models medim medim_3x] [--out FOLDER]

Reads runs/<world>/logs/train_medim@<model>.jsonl (validation), costs/train_medim@<model>.json (examples, seconds) and
metrics/<model>.json (test pairs). Writes training_budget.json and .png into docs/results/<world>. The abscissa is
samples seen; every row has the whole course of its own learning rate, so only the ends of the curves compare budgets.
Both rows come from `phantom-full`.
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
}
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

    def datasets(self) -> list[str]:
        """Those of the validation curves, in the log's order."""
        return list(dict.fromkeys(name.split("/")[1] for name in self.curves))


def read_budget(world: World, model: str) -> Budget:
    """Curves, costs and scores of one row.

    Raises:
        FileNotFoundError: names what is missing and the command that makes it.
        ValueError: the log holds no validation.
    """
    log, costs, metrics = (
        world.logs(f"train_medim@{model}"), world.costs(f"train_medim@{model}"), world.metrics(model)
    )  # fmt: skip
    for path, stage in ((log, "train_medim"), (costs, "train_medim"), (metrics, "evaluate")):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: `python -m pipeline.profile phantom-full`, then `dvc repro {stage}@{model}`"
            )
    spent = json.loads(costs.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    validations = [line for line in lines if any(name.startswith("val/") for name in line)]
    if not validations:
        raise ValueError(f"{log} holds no validation: lower train_medim.optim.validate_every and train again")
    a_step = spent["examples"] / lines[-1]["step"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in validations:
        for name, value in line.items():
            if name.startswith("val/") and name.split("/")[2] in CURVES:
                curves.setdefault(name, []).append((round(line["step"] * a_step), float(value)))
    rows = json.loads(metrics.read_text(encoding="utf-8"))["rows"]
    row = next(iter(rows.values()))
    datasets = dict.fromkeys(name.split("/")[1] for name in curves)
    scores = {f"{d}/{s}": row[f"{d}/{s}"] for d in datasets for s in SCORES if f"{d}/{s}" in row}
    return Budget(model, int(spent["examples"]), float(spent["seconds"]), curves, scores)


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
    """A panel a curve, a colour a row, a line style a dataset. The same numbers give the same bytes."""
    figure = Figure(figsize=(15, 4.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{world}: validation pairs against samples seen", fontsize=12)
    for ax, (scalar, title) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for budget, colour in zip(budgets, COLOURS, strict=False):
            for dataset, style in zip(budget.datasets(), itertools.cycle(STYLES), strict=False):
                points = budget.curves.get(f"val/{dataset}/{scalar}", [])
                ax.plot([x / 1000 for x, _ in points], [y for _, y in points], style, color=colour, marker="o",
                        markersize=3, label=f"{budget.model}, {dataset}")  # fmt: skip
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("thousand samples", fontsize=9)
        ax.set_xscale("log", base=2)
        ax.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Software": None})


def write(world: World, models: Sequence[str], out: Path) -> str:
    """Write JSON and PNG into `out`, return the table. Raises: see `read_budget`."""
    budgets = [read_budget(world, model) for model in models]
    page: dict[str, Any] = {
        "world": world.name,
        "models": {
            b.model: {"samples": b.samples, "seconds": b.seconds, "scores": b.scores, "curves": b.curves}
            for b in budgets
        },
    }
    draw(budgets, world.name, out / f"{NAME}.png")
    text = json.dumps(page, indent=1, ensure_ascii=False) + "\n"
    (out / f"{NAME}.json").write_text(text, encoding="utf-8")
    return table(budgets)


def main() -> int:
    """Write, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", help="default: that of params.yaml")
    parser.add_argument("--models", nargs="+", default=["medim", "medim_3x"])
    parser.add_argument("--out", type=Path, help="folder; default: docs/results/<world>")
    given = parser.parse_args()
    if len(given.models) > len(COLOURS):
        parser.error(f"--models takes at most {len(COLOURS)} rows, got {len(given.models)}")
    try:
        world = World(RUNS / (given.world or load_top().world))
        print(write(world, given.models, given.out or world.results()))
    except (FileNotFoundError, ValueError, ParamsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
