"""Tables and trainings of a world as MLflow runs.

Per table one experiment `<world>/<id>`: each row of the table is a flat run, each column a metric, and a run
"(the table)" holds it as HTML, Markdown and CSV. One experiment `<world>/trainings`: one run per finished stage
instance that logged curves, with parameters and costs. One experiment `<world>/figures` with one run that holds every
picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.paths import World
from pipeline.row_costs import COSTS, TRAININGS, costs_of_rows, read_costs
from pipeline.tracking_store import (
    CHARTS,
    Point,
    RunSpec,
    artifacts_link,
    digest,
    group_runs,
    link,
    now_ms,
    open_experiment,
    shared_view,
    show_runs,
    slug,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

HEAD = "(the table)"
FORMATS = (".md", ".csv", ".html")
WORK = "work/"  # before a cost: MLflow's page of curves goes by the alphabet, and curves are to come before costs
SHEETS = "figures"  # artifact folder of a training's pictures
LAYOUT = b"2"  # raise it when the same files are to be shown in another way: all runs are recorded anew


@dataclass(frozen=True)
class Shown:
    """One experiment that MLflow shows now."""

    name: str
    title: str
    address: str
    changed: bool


def show_table(client: MlflowClient, world: World, path: Path, marks: Mapping[str, str] | None = None) -> Shown:
    """Record one table (tables/<id>.json and its other formats); `marks`: see `show_runs`.

    Raises:
        ValueError: two columns have the same metric key.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    costs = row_costs(world)
    others = [path.with_suffix(suffix) for suffix in FORMATS]
    texts = [file.read_bytes() for file in others if file.is_file()]
    content = digest(LAYOUT, path.read_bytes(), *texts, json.dumps(costs).encode())
    keys = column_keys(table)
    name = f"{world.name}/{table['id']}"
    specs = table_runs(table, keys, costs)
    view = shared_view(list(keys.values()), ["profile"], [spec.name for spec in specs])
    experiment = open_experiment(client, name, _note(table), view)
    specs[-1].texts |= {f"table{f.suffix}": f.read_text(encoding="utf-8") for f in others if f.is_file()}
    specs[-1].texts["table.json"] = path.read_text(encoding="utf-8")
    specs[-1].tags["mlflow.note.content"] = specs[-1].texts.get("table.md", table["title"])
    return Shown(name, table["title"], link(experiment), show_runs(client, experiment, "rows", content, specs, marks))


def column_keys(table: Mapping[str, Any]) -> dict[str, str]:
    """Column -> metric key, in the table's order; the dataset is left out where all columns have the same one.

    Raises:
        ValueError: two columns have the same key.
    """
    columns = list(dict.fromkeys(cell["column"] for cell in table["cells"]))
    dataset = shared_dataset(table)
    keys = {column: slug(column if dataset is None else column.removeprefix(f"{dataset}/")) for column in columns}
    for column, key in keys.items():
        same = [other for other, used in keys.items() if used == key]
        if len(same) > 1:
            raise ValueError(f"table {table['id']}: columns {same} have one metric key {key!r}; rename {column!r}")
    return keys


def shared_dataset(table: Mapping[str, Any]) -> str | None:
    """What stands before the first `/` of every column, or None: headings in MLflow have room for a metric's name."""
    first = {cell["column"].partition("/")[0] for cell in table["cells"] if "/" in cell["column"]}
    whole = all("/" in cell["column"] for cell in table["cells"])
    return first.pop() if whole and len(first) == 1 else None


def _note(table: Mapping[str, Any]) -> str:
    dataset = shared_dataset(table)
    return f"{table['title']}. `(the table)` below holds it as one page." + (f" Data: {dataset}" if dataset else "")


def table_runs(
    table: Mapping[str, Any], keys: Mapping[str, str], costs: Mapping[str, Mapping[str, float]]
) -> list[RunSpec]:
    """One run a row, in the table's order from newest to oldest start, then the run that holds the whole table.

    A row lasts as long as its model trained, so that MLflow's column `Duration` says something.
    """
    now = now_ms()
    begin = now - max((1000 * cost.get("seconds", 0) for cost in costs.values()), default=0)
    begin = int(begin) - len(table["cells"])
    rows = list(dict.fromkeys(cell["row"] for cell in table["cells"]))
    specs = []
    for number, row in enumerate(rows):
        cells = [cell for cell in table["cells"] if cell["row"] == row]
        points = [
            Point(key, value, now, 0) for cell in cells for key, value in _cell_metrics(cell, keys[cell["column"]])
        ]
        cost = costs.get(row, {})
        points += [Point(f"{WORK}{key}", float(value), now, 0) for key, value in cost.items()]
        tags = {"kind": "trivial" if row.startswith("trivial: ") else "row"}
        start = begin - number
        end = start + int(1000 * cost.get("seconds", 0))
        specs.append(RunSpec(row, start, end, {"profile": table["profile"]}, points, tags))
    return [*specs, RunSpec(HEAD, begin + 1, begin + 1, {"profile": table["profile"]}, tags={"kind": "table"})]


def _cell_metrics(cell: Mapping[str, Any], key: str) -> Iterator[tuple[str, float]]:
    """The value under the column's own key; interval, count and the printed number under a prefix."""
    for field, name in (
        ("value", key),
        ("low", f"low/{key}"),
        ("high", f"high/{key}"),
        ("n", f"n/{key}"),
        ("paper", f"paper/{key}"),
    ):
        if isinstance(cell.get(field), int | float):
            yield name, float(cell[field])


def row_costs(world: World) -> dict[str, dict[str, float]]:
    """Row -> what the training of its model took, see `costs_of_rows`."""
    metrics = {path.stem: read_json(path) for path in sorted((world.root / "metrics").glob("*.json"))}
    rows = {model: list(content.get("rows", {})) for model, content in metrics.items()}
    return costs_of_rows(read_costs(world.root / "costs", TRAININGS), rows)


def show_trainings(client: MlflowClient, world: World) -> Shown | None:
    """Record every finished stage instance that has curves; None where there is none."""
    finished = [path for path in sorted((world.root / "costs").glob("*.json")) if world.logs(path.stem).is_file()]
    if not finished:
        return None
    experiment = open_trainings(client, world)
    changed = False
    for path in finished:
        content, spec = training_run(world, path.stem)
        changed |= show_runs(client, experiment, path.stem, content, [spec])
    return Shown(trainings_name(world), "trainings", link(experiment) + CHARTS, changed)


def open_trainings(client: MlflowClient, world: World) -> str:
    """The id of the experiment of a world's trainings."""
    names = [path.stem for path in sorted((world.root / "costs").glob("*.json"))]
    view = shared_view([f"{WORK}{key}" for key in ("seconds", "parameters", "peak_bytes")], [], names)
    return open_experiment(client, trainings_name(world), f"Trainings of the world {world.name}", view)


def trainings_name(world: World) -> str:
    """Name of the experiment of a world's trainings."""
    return f"{world.name}/trainings"


def show_figures(client: MlflowClient, world: World) -> Shown | None:
    """Record the world's pictures as artifacts of one run and link to them; None where there is none."""
    files = sorted(world.figures().rglob("*.png"))
    if not files:
        return None
    name, run = f"{world.name}/figures", "figures"
    experiment = open_experiment(client, name, f"Pictures of the world {world.name}", shared_view([], [], [run]))
    content = digest(LAYOUT, *(part for f in files for part in (f.name.encode(), f.read_bytes())))
    spec = RunSpec(run, now_ms(), now_ms(), tags={"kind": "figures"}, files=[(f, "") for f in files])
    changed = show_runs(client, experiment, run, content, [spec])
    shown = next(one for one in group_runs(client, experiment, run) if one.data.tags.get("current") == "yes")
    return Shown(name, "pictures", artifacts_link(experiment, shown.info.run_id), changed)


def training_run(world: World, instance: str) -> tuple[str, RunSpec]:
    """(content hash, run) of a finished stage instance: curves, parameters, costs, pictures."""
    log, costs = world.logs(instance).read_bytes(), read_json(world.costs(instance))
    pictures = training_sheets(world, instance)
    content = digest(LAYOUT, log, json.dumps(costs, sort_keys=True).encode(), *(f.read_bytes() for f in pictures))
    points = list(curve_points(log.decode("utf-8").splitlines()))
    begin = min((point.time for point in points), default=now_ms())
    end = begin + int(1000 * costs["seconds"])
    points += [Point(f"{WORK}{k}", float(costs[k]), end, 0) for k in COSTS if isinstance(costs.get(k), int | float)]
    params = dict(flat(costs.get("params", {}))) | {key: str(costs[key]) for key in ("seed", "threads") if key in costs}
    tags = {"kind": "training", "stage": instance.partition("@")[0], "code": str(costs.get("code"))}
    return content, RunSpec(instance, begin, end, params, points, tags, files=[(f, SHEETS) for f in pictures])


def training_sheets(world: World, instance: str) -> list[Path]:
    """Sheets that a training draws: figures/vqgan_training*.png of train_vqgan, x_training*.png of train_medim@x."""
    stage, _, item = instance.partition("@")
    name = item or stage.removeprefix("train_")
    return sorted(world.figures().glob(f"{escape(name)}_training*.png"))


def curve_points(lines: Iterable[str]) -> Iterator[Point]:
    """Points of a curve file; null values (not finite when measured) are left out."""
    for line in lines:
        data = json.loads(line)
        for key, value in data.items():
            if key not in ("step", "time") and value is not None:
                yield Point(slug(key), float(value), int(1000 * data["time"]), int(data["step"]))


def flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`{"optim": {"lr": 1e-3}}` -> `("optim.lr", "0.001")`."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))
