"""Tables and trainings of a world as MLflow runs.

Per table one experiment `<world>/<id>`: each row of the table is a flat run, each column a metric, and a run
"(the table)" holds it as HTML, Markdown and CSV. One experiment `<world>/trainings`: one run per finished stage
instance that logged curves, with parameters, costs and pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.paths import World
from pipeline.tracking_store import Point, RunSpec, digest, link, now_ms, open_experiment, show_runs, slug

if TYPE_CHECKING:
    from mlflow import MlflowClient

HEAD = "(the table)"
FORMATS = (".md", ".csv", ".html")
COSTS = ("seconds", "peak_bytes", "parameters", "examples")


@dataclass(frozen=True)
class Shown:
    """One experiment that MLflow shows now."""

    name: str
    title: str
    address: str
    changed: bool


def show_table(client: MlflowClient, world: World, path: Path) -> Shown:
    """Record one table (tables/<id>.json and its other formats).

    Raises:
        ValueError: two columns have the same metric key.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    costs = row_costs(world)
    others = [path.with_suffix(suffix) for suffix in FORMATS]
    content = digest(path.read_bytes(), *(f.read_bytes() for f in others if f.is_file()), json.dumps(costs).encode())
    keys = column_keys(table)
    name = f"{world.name}/{table['id']}"
    experiment = open_experiment(client, name, table["title"], list(keys.values()), ["profile"])
    specs = table_runs(table, keys, costs)
    specs[-1].texts |= {f"table{f.suffix}": f.read_text(encoding="utf-8") for f in others if f.is_file()}
    specs[-1].texts["table.json"] = path.read_text(encoding="utf-8")
    specs[-1].tags["mlflow.note.content"] = specs[-1].texts.get("table.md", table["title"])
    return Shown(name, table["title"], link(experiment), show_runs(client, experiment, "rows", content, specs))


def column_keys(table: Mapping[str, Any]) -> dict[str, str]:
    """Column -> metric key, in the table's order.

    Raises:
        ValueError: two columns have the same key.
    """
    keys = {column: slug(column) for column in dict.fromkeys(cell["column"] for cell in table["cells"])}
    for column, key in keys.items():
        same = [other for other, used in keys.items() if used == key]
        if len(same) > 1:
            raise ValueError(f"table {table['id']}: columns {same} have one metric key {key!r}; rename {column!r}")
    return keys


def table_runs(
    table: Mapping[str, Any], keys: Mapping[str, str], costs: Mapping[str, Mapping[str, int]]
) -> list[RunSpec]:
    """One run a row, in the table's order from newest to oldest start, then the run that holds the whole table."""
    now = now_ms()
    rows = list(dict.fromkeys(cell["row"] for cell in table["cells"]))
    specs = []
    for number, row in enumerate(rows):
        cells = [cell for cell in table["cells"] if cell["row"] == row]
        points = [
            Point(key, value, now, 0) for cell in cells for key, value in _cell_metrics(cell, keys[cell["column"]])
        ]
        points += [Point(f"cost/{key}", float(value), now, 0) for key, value in costs.get(row, {}).items()]
        kind = "trivial" if row.startswith("trivial: ") else "row"
        specs.append(RunSpec(row, now - number, now, {"profile": table["profile"]}, points, {"kind": kind}))
    return [*specs, RunSpec(HEAD, now + 1, now + 1, {"profile": table["profile"]}, tags={"kind": "table"})]


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


def row_costs(world: World) -> dict[str, dict[str, int]]:
    """Row -> seconds and parameters of the training of its model (tables hold no seconds, see costs/)."""
    costs: dict[str, dict[str, int]] = {}
    trained = {
        path.stem.partition("@")[2]: read_json(path) for path in sorted((world.root / "costs").glob("train_*@*.json"))
    }
    for path in sorted((world.root / "metrics").glob("*.json")):
        metrics = read_json(path)
        cost = trained.get(path.stem, {})
        values = {key: cost[key] for key in COSTS if isinstance(cost.get(key), int | float)}
        costs |= {row: values for row in metrics.get("rows", {}) if values}
    return costs


def show_trainings(client: MlflowClient, world: World) -> Shown | None:
    """Record every finished stage instance that has curves, and the figures; None where there is neither."""
    finished = [path for path in sorted((world.root / "costs").glob("*.json")) if world.logs(path.stem).is_file()]
    figures = sorted(world.figures().rglob("*.png"))
    if not finished and not figures:
        return None
    name = trainings_name(world)
    experiment = open_experiment(
        client, name, f"Trainings of the world {world.name}", ["cost/seconds", "cost/parameters"], []
    )
    changed = False
    for path in finished:
        content, spec = training_run(world, path.stem)
        changed |= show_runs(client, experiment, path.stem, content, [spec])
    if figures:
        content = digest(*(part for f in figures for part in (f.name.encode(), f.read_bytes())))
        spec = RunSpec("(figures)", now_ms(), now_ms(), tags={"kind": "figures"}, files=[(f, "") for f in figures])
        changed |= show_runs(client, experiment, "figures", content, [spec])
    return Shown(name, "trainings", link(experiment), changed)


def trainings_name(world: World) -> str:
    """Name of the experiment of a world's trainings."""
    return f"{world.name}/trainings"


def training_run(world: World, instance: str) -> tuple[str, RunSpec]:
    """(content hash, run) of a finished stage instance: curves, parameters, costs, pictures."""
    log, costs = world.logs(instance).read_bytes(), read_json(world.costs(instance))
    pictures = _pictures(world, instance)
    content = digest(log, json.dumps(costs, sort_keys=True).encode(), *(f.read_bytes() for f in pictures))
    points = list(curve_points(log.decode("utf-8").splitlines()))
    begin = min((point.time for point in points), default=now_ms())
    end = begin + int(1000 * costs["seconds"])
    points += [Point(f"cost/{k}", float(costs[k]), end, 0) for k in COSTS if isinstance(costs.get(k), int | float)]
    params = dict(flat(costs.get("params", {}))) | {key: str(costs[key]) for key in ("seed", "threads") if key in costs}
    tags = {"kind": "training", "stage": instance.partition("@")[0], "code": str(costs.get("code"))}
    return content, RunSpec(instance, begin, end, params, points, tags, files=[(f, "figures") for f in pictures])


def _pictures(world: World, instance: str) -> list[Path]:
    """PNG sheets beside the trained model."""
    item = instance.partition("@")[2]
    return sorted(world.model(item).rglob("*.png")) if item else []


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
