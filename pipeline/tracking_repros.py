"""Finished repros of a world as MLflow runs: in the experiment `<world>/pipeline` one run `pipeline` each.

Parameters are those of params.yaml, metrics the minutes of each stage and what the table of promises says, tags the
commit, the hash of dvc.lock, profile, machine and versions; inputs are the files of pairs by their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.paths import World
from pipeline.repro_record import repros
from pipeline.tracking_store import (
    DataSpec,
    Point,
    RunSpec,
    digest,
    group_runs,
    link,
    open_experiment,
    shared_view,
    show_runs,
    slug,
)
from pipeline.tracking_tables import Shown, flat, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN = "pipeline"
MARK = "pipeline_run"  # tag of a table's rows: id of the run `pipeline` that made or confirmed them last
LAYOUT = b"1"  # raise it when the same records are to be shown in another way
TOTAL = "minutes/total"
SHOWN_TAGS = ("git_commit", "git_dirty", "dvc_lock", "cores", "processor", "gpu")


@dataclass(frozen=True)
class Repro:
    """The repro that a world's files are from."""

    shown: Shown
    experiment: str
    run: str
    record: dict[str, Any]

    @property
    def marks(self) -> dict[str, str]:
        """Tags of the rows that belong to it."""
        return {MARK: self.run}


def show_repros(client: MlflowClient, world: World) -> Repro | None:
    """Record every finished repro; the last one, None where there is none."""
    paths = repros(world)
    if not paths:
        return None
    name, title = f"{world.name}/pipeline", f"Finished repros of the world {world.name}"
    experiment = open_experiment(client, name, title, shared_view([TOTAL], ["profile"], [RUN], SHOWN_TAGS))
    changed = False
    for path in paths:
        content = digest(LAYOUT, path.read_bytes())
        changed |= show_runs(client, experiment, path.stem, content, [repro_run(path)])
    runs = group_runs(client, experiment, paths[-1].stem)
    current = next(run for run in runs if run.data.tags.get("current") == "yes")
    return Repro(Shown(name, title, link(experiment), changed), experiment, current.info.run_id, read_json(paths[-1]))


def repro_run(path: Path) -> RunSpec:
    """The run of a record. It lasts as long as its stages took together, and ends when it was recorded."""
    record = read_json(path)
    end, total = int(1000 * record["time"]), sum(record["minutes"].values())
    values = {TOTAL: total, **{f"minutes/{slug(name)}": spent for name, spent in record["minutes"].items()}}
    points = [Point(key, value, end, 0) for key, value in (values | record["results"]).items()]
    data = [DataSpec(**one) for one in record["data"]]
    params, begin = dict(flat(record["params"])), end - int(60_000 * total)
    return RunSpec(RUN, begin, end, params, points, dict(_tags(record)), files=[(path, "")], data=data)


def _tags(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "kind", RUN
    yield "world", record["world"]
    yield "profile", record["params"]["profile"]
    yield "dvc_lock", record["lock"]
    yield "git_commit", record["commit"] or "none"
    yield "git_dirty", {True: "yes", False: "no", None: "unknown"}[record["dirty"]]
    if record["commit"]:
        yield "mlflow.source.git.commit", record["commit"]
    for key, value in record["machine"].items():
        yield key, "none" if value is None else str(value)
    for package, version in record["versions"].items():
        yield f"version.{package}", version
