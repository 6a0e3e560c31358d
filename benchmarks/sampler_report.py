"""The plot and the table of what benchmarks.sampler_evaluations has measured, from its JSON file alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.sampler_grid import METRICS, MODALITY, PANELS, number_of
from benchmarks.sampler_measure import Record, ratios
from medim.diffusion.settings import SamplerSettings
from medim.metrics.estimate_text import estimate_text

TITLES = {
    "schedule": "schedule", "order": "order of tokens", "commit": "commit rule", "guidance": "guidance",
    "temperature": "temperature", "choice": "best of several",
}  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")  # Okabe and Ito's, yellow darkened
MARKERS = ("o", "s", "^", "D", "v", "P")
LETTERS = 11.0  # of the title, an inch
TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def series_rows(described: Mapping[str, Any], panel: str, group: str) -> list[dict[str, Any]]:
    """The series of a panel and group (`<dataset>/<task>`), each {panel, group, label, points}."""
    rows = [row for row in described[PANELS[panel]] if (row["panel"], row["group"]) == (panel, group)]
    return list(rows)


def abscissa(panel: str, group: str, key: str, record: Record) -> float:
    """Where a point stands: its measured evaluations, its guidance or temperature, or how many it chooses from."""
    if PANELS[panel] == "evaluations":
        return float(record.points[key]["evaluations"])
    task = group.split("/")[1]
    sampler = SamplerSettings(**record.identity["sampler"][task] | record.points[key]["changes"])
    return float(number_of(sampler) if panel == "choice" else getattr(sampler, f"{MODALITY[task]}_{panel}"))


def draw(record: Record, described: Mapping[str, Any], out: Path) -> None:
    """Write the plot: a row a task, score and dataset, a column a panel; a star where the default stands.

    Args:
        record: all points.
        described: the values of PANELS, and `groups`, as they stand in the JSON file.
        out: PNG file. The same numbers give the same bytes.
    """
    groups = [group for task in METRICS for group in described["groups"] if group.split("/")[1] == task]
    rows = [(g, metric) for task, metrics in METRICS.items() for metric in metrics for g in groups if g.endswith(task)]
    panels = [panel for panel in PANELS if any(row["panel"] == panel for row in described[PANELS[panel]])]
    figure = Figure(figsize=(1 + 3.2 * len(panels), 1.2 + 2.7 * len(rows)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    title = (
        f"{described['world']}, {described['model']}: findings against network evaluations, validation split, "
        f"n = {record.identity['pairs']} at most, 95 % intervals; ★ and dashed line: params.yaml's default"
    )
    figure.suptitle("\n".join(wrap(title, round(LETTERS * figure.get_figwidth()))), fontsize=12)
    grid = figure.subplots(len(rows), len(panels), sharey="row", squeeze=False)
    seen: set[str] = set()
    for axes, (group, metric) in zip(grid, rows, strict=True):
        dataset, task = group.split("/")
        axes[0].set_ylabel(f"{dataset}\n{task.replace('_', ' ')}\n{metric.replace('_', ' ')}")
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, group, metric, record, described)
            if task not in seen:
                ax.set_title(TITLES[panel], loc="left", fontsize=11, pad=36)
                if panel == "choice" or PANELS[panel] == "evaluations":
                    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, fontsize=8, frameon=False,
                              columnspacing=1.0, handlelength=1.6)  # fmt: skip
        seen.add(task)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Software": None})


def _draw_panel(ax: Axes, panel: str, group: str, metric: str, record: Record, described: Mapping[str, Any]) -> None:
    default = f"{group}/default"
    for number, row in enumerate(series_rows(described, panel, group)):
        keys = [
            key for key in row["points"] if key in record.points and record.points[key][metric]["value"] is not None
        ]
        if not keys:
            continue
        placed = sorted((abscissa(panel, group, key, record), key) for key in keys)
        x, scores = [place for place, _ in placed], [record.points[key][metric] for _, key in placed]
        y = [score["value"] for score in scores]
        error = [[abs(score["value"] - (score[end] if score[end] is not None else score["value"])) for score in scores]
                 for end in ("low", "high")]  # fmt: skip
        colour = "black" if default in row["points"] else COLOURS[number % len(COLOURS)]
        ax.errorbar(x, y, error, label=row["label"], color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4,
                    linewidth=1.3, elinewidth=0.7, alpha=0.85)  # fmt: skip
    if default in record.points and record.points[default][metric]["value"] is not None:
        value = record.points[default][metric]["value"]
        ax.axhline(value, color="black", linewidth=0.7, linestyle="--", alpha=0.5)
        ax.plot(abscissa(panel, group, default, record), value, marker="*", markersize=14, color="gold",
                markeredgecolor="black", zorder=5, linestyle="none")  # fmt: skip
    ax.grid(alpha=0.25)
    shown = {key for row in described[PANELS[panel]] if row["group"] == group for key in row["points"]}
    places = sorted({abscissa(panel, group, key, record) for key in shown if key in record.points})
    if PANELS[panel] == "evaluations":
        ax.set_xscale("log", base=2)
        ax.set_xticks(TICKS, [str(tick) for tick in TICKS])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(places[0] / 1.25, places[-1] * 1.25)
        ax.set_xlabel("network evaluations a sample", fontsize=9)
    else:
        ax.set_xticks(places, [f"{place:g}" for place in places])
        named = "answers, draws a step or beams" if panel == "choice" else f"{MODALITY[group.split('/')[1]]}_{panel}"
        ax.set_xlabel(named, fontsize=9)


def table(record: Record, described: Mapping[str, Any]) -> str:
    """All points as text, with ratios to the default of their group (seconds: of the same run)."""
    blocks = []
    for group in described["groups"]:
        keys = [key for key in record.points if key.startswith(f"{group}/")]
        wide = max((len(key) - len(group) for key in keys), default=0)
        metrics = METRICS[group.split("/")[1]]
        head = [f"{'settings':{wide}}", " evals", "    s", *(f"{metric:>24}" for metric in metrics),
                "F1 ratio", "evals ratio", "s ratio"]  # fmt: skip
        lines = [group, "  ".join(head)]
        for key in keys:
            point, ratio = record.points[key], ratios(key, record)
            scores = [score_text(point[metric]) for metric in metrics]
            cells = [f"{key[len(group) + 1 :]:{wide}}", f"{point['evaluations']:6.1f}", f"{point['seconds']:5.1f}",
                     *(f"{score:>24}" for score in scores), _ratio(ratio["finding_f1"], 8),
                     _ratio(ratio["evaluations"], 11), _ratio(ratio["seconds"], 7)]  # fmt: skip
            lines.append("  ".join(cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def score_text(score: Mapping[str, float | None]) -> str:
    """A score with its interval, see `estimate_text`."""
    return estimate_text(score["value"], score["low"], score["high"])


def _ratio(value: float | None, wide: int) -> str:
    return f"{'-':>{wide}}" if value is None else f"{value:{wide}.2f}"


def series_json(panel: str, group: str, label: str, keys: Sequence[str]) -> dict[str, Any]:
    """A series as it stands in the JSON file."""
    return {"panel": panel, "group": group, "label": label, "points": list(keys)}
