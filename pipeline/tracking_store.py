"""The MLflow store: opened once at a time, and filled so that the same content is never recorded twice.

MLflow only shows files. Runs come in groups (the rows of a table; one training), each with a content hash in the tag
`content`. `current = yes` marks the runs that show today's files; `complete = yes` is set last, so what a killed
process left half done is recorded again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.paths import MLFLOW, mlflow_artifacts, mlflow_db
from pipeline.resources import telemetry_off

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW = "paper"  # key of the shared view that shows an experiment as the paper's table
UI = "http://127.0.0.1:5000"
START_UI = ".venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db --port 5000"
LIVE = "live"  # content of a run that is still being sent
CHARTS = "&compareRunsMode=CHART"  # after a link: the page opens with the curves
LETTER = 6.5  # pixels that a letter of a heading or of a run's name takes
WIDEST = 290  # pixels; a longer heading is cut, and shown whole under the mouse
BATCH = {"metrics": 1000, "params": 100}  # MLflow's limits for one call
URI_VARIABLE = "MLFLOW_TRACKING_URI"
PAGES_VARIABLE = "MEDIM_MLFLOW_PAGES"  # where the pages are, if not where UI says
PASSWORD = re.compile(r"(://[^:/@\s]*):\S*@")
TOLD, PATIENCE = 10.0, 1800.0  # seconds of waiting for the store until a word is said, until it is an error
POLL = 0.2  # seconds
SHORT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # a server that is away
LONG = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}  # a model of gigabytes


class StoreError(RuntimeError):
    """The store cannot be used; the message says what to do. The files under runs/ are whole all the same."""


@dataclass(frozen=True)
class Point:
    """One value of a metric. `time` in ms since 1970."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class DataSpec:
    """A data set that a run used. `digest` is ours, at most 36 letters; nothing is loaded."""

    name: str
    split: str
    path: str
    digest: str
    profile: dict[str, int]  # rows, bytes


@dataclass
class RunSpec:
    """One MLflow run as it is to be."""

    name: str
    start_time: int  # ms since 1970
    end_time: int
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # artifact path -> text
    files: list[tuple[Path, str]] = field(default_factory=list)  # (file, artifact folder)
    data: list[DataSpec] = field(default_factory=list)


def slug(title: str) -> str:
    """A metric key MLflow takes everywhere: `BLEU-1 (coco)` -> `bleu-1_coco`; only `a-z 0-9 _ / . -`."""
    parts = (re.sub(r"[^a-z0-9_.-]+", "_", part.lower()).strip("_.") for part in title.split("/"))
    return "/".join(part for part in parts if part)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def store_uri() -> str:
    """The user's MLFLOW_TRACKING_URI, else the SQLite file of this repository."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{mlflow_db().resolve()}"


def without_password(text: str) -> str:
    """A text in which addresses show no password: it is printed, and stands on Prefect's page."""
    return PASSWORD.sub(r"\1:***@", text)


def ui_address() -> str:
    """Where the pages are: MEDIM_MLFLOW_PAGES, else the server in MLFLOW_TRACKING_URI, else what START_UI starts."""
    chosen = os.environ.get(PAGES_VARIABLE)
    uri = chosen or store_uri()
    return re.sub(r"://[^/\s]*@", "://", uri).rstrip("/") if uri.startswith("http") else UI


def pages() -> str:
    """The command that starts the pages, or where they are already."""
    uri = os.environ.get(URI_VARIABLE)
    if not uri:
        return START_UI
    if uri.startswith("http"):
        return f"at {without_password(uri)}"
    return f'.venv/bin/mlflow ui --backend-store-uri "${URI_VARIABLE}" --port 5000'


def link(experiment: str) -> str:
    """The page that shows an experiment as a table (MLflow's default page for it hides the runs)."""
    return f"{ui_address()}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def artifacts_link(experiment: str, run: str) -> str:
    """The page that shows the files of a run."""
    return f"{ui_address()}/#/experiments/{experiment}/runs/{run}/artifacts?workflowType=machine_learning"


@contextmanager
def locked_store() -> Iterator[MlflowClient]:
    """The store for one process at a time: several that create the SQLite file at once destroy it.

    Raises:
        StoreError: the store cannot be opened, another process keeps it for PATIENCE seconds, or mlflow/ was moved here
            from another folder.
    """
    telemetry_off()
    for name, value in SHORT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with _alone():
        try:
            if not os.environ.get(URI_VARIABLE) and not mlflow_db().is_file():
                _create_database(MlflowClient)
            client = MlflowClient(store_uri())
            experiments = client.search_experiments()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            said = without_password(f"MLflow at {store_uri()} does not open ({error}); {_remedy()}")
            raise StoreError(said) from None  # what it was raised from would print the password
        _refuse_moved(experiment.artifact_location for experiment in experiments if "/" in experiment.name)
        yield client


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of the store."""
    MLFLOW.mkdir(parents=True, exist_ok=True)
    begun, told = time.monotonic(), False
    with (MLFLOW / "store.lock").open("a+") as lock:
        while not _try(lock):
            lock.seek(0)
            passed, who = time.monotonic() - begun, f"the process {lock.read().strip() or '(unknown)'}"
            if passed > PATIENCE:
                raise StoreError(f"{who} has kept {lock.name} for {passed:.0f} s: end it, then run the command again")
            if passed > TOLD and not told:
                told = True
                print(f"waiting for {who}, which has {lock.name}", file=sys.stderr, flush=True)
            time.sleep(POLL)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _try(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def uploading() -> Iterator[None]:
    """Patience with large files: MLflow reads these variables at every call. What the user has set stays."""
    before = {name: os.environ.get(name) for name in LONG}
    os.environ.update({name: value for name, value in LONG.items() if before[name] in (None, SHORT[name])})
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def _create_database(client: type[MlflowClient]) -> None:
    """Make the SQLite file under another name first: one whose making is killed halfway can never be opened again."""
    partial = mlflow_db().with_suffix(".partial")
    for old in MLFLOW.glob(f"{partial.name}*"):
        old.unlink()
    client(f"sqlite:///{partial.resolve()}").search_experiments()  # the first call makes and migrates the tables
    os.replace(partial, mlflow_db())


def _remedy() -> str:
    if os.environ.get(URI_VARIABLE):
        return f"start the server, or unset {URI_VARIABLE} to use {mlflow_db()}"
    return (
        f"delete {mlflow_db()} and run `.venv/bin/python -m pipeline.tracking sync`: everything in it comes from files"
    )


def _refuse_moved(locations: Iterable[str]) -> None:
    here = mlflow_artifacts().resolve().as_uri()
    moved = [place for place in locations if not place.startswith(here)]
    if moved and not os.environ.get(URI_VARIABLE):
        raise StoreError(f"{mlflow_db()} points to artifacts in {moved[0]}, not {here}; {_remedy()}")


def shared_view(
    columns: Sequence[str], params: Sequence[str], rows: Sequence[str], tags: Sequence[str] = ()
) -> dict[str, Any]:
    """The state of MLflow's page that makes it the paper's table: columns in order, as wide as their headings.

    Without it MLflow shows no metric at all, sorts metrics by name, cuts headings after 13 letters and draws the curves
    of no more than ten runs. Start and duration are columns that nobody can take away.

    Args:
        columns: metric keys.
        params: parameters shown after them.
        rows: names of the runs, for the width of the first column.
        tags: tags shown at the end.
    """
    kinds = (("metrics", columns), ("params", params), ("tags", tags))
    selected = [f"{kind}.`{key}`" for kind, keys in kinds for key in keys]
    widths = {entry: min(WIDEST, 30 + int(LETTER * len(entry.split("`")[1]))) for entry in selected}
    name, start = "attributes.`Run Name`", "runDateAndNestInfo"
    return {
        "selectedColumns": selected,
        "columnOrder": [name, start, *selected, "duration"],
        "columnWidths": {name: 50 + int(LETTER * max(map(len, rows), default=14)), start: 140} | widths,
        "runsHiddenMode": "SHOW_ALL",
        "searchFilter": "tags.current = 'yes'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


def open_experiment(client: MlflowClient, name: str, note: str, view: Mapping[str, Any]) -> str:
    """The id of an experiment, created or restored, with its note and its shared view."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # a server has a place of its own for artifacts, a database has none
        place = None if store_uri().startswith("http") else (mlflow_artifacts() / name).resolve().as_uri()
        experiment = client.create_experiment(name, artifact_location=place)
    else:
        experiment = found.experiment_id
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(experiment)
    tags = {"mlflow.note.content": note, f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}
    before = {} if found is None else found.tags
    for key, value in tags.items():
        if before.get(key) != value:
            client.set_experiment_tag(experiment, key, value)
    return str(experiment)


def group_runs(client: MlflowClient, experiment: str, group: str) -> list[Any]:
    """All runs of a group that nobody deleted."""
    runs, token = [], None
    while True:
        page = client.search_runs([experiment], f"tags.`group` = '{group}'", max_results=1000, page_token=token)
        runs += list(page)
        token = page.token
        if not token:
            return runs


def show_runs(
    client: MlflowClient, experiment: str, group: str, content: str, specs: Sequence[RunSpec],
    marks: Mapping[str, str] | None = None,
) -> bool:  # fmt: skip
    """Make `specs` the current runs of a group; False where they were recorded already.

    Runs with another content stay, marked as not current. Live runs and half recorded ones are deleted. `marks` are
    tags of the current runs that are no part of their content.
    """
    before = group_runs(client, experiment, group)
    same = [run for run in before if run.data.tags.get("content") == content]
    whole = len(same) == len(specs) and any(run.data.tags.get("complete") == "yes" for run in same)
    for run in before:
        keep = whole if run in same else run.data.tags.get("content") != LIVE
        if not keep:
            client.delete_run(run.info.run_id)
            continue
        wanted = {"current": "yes", **(marks or {})} if run in same else {"current": "no"}
        for key, value in wanted.items():
            if run.data.tags.get(key) != value:
                client.set_tag(run.info.run_id, key, value)
    if whole:
        return False
    tags = {"group": group, "content": content, **(marks or {})}
    created = [_create(client, experiment, spec, tags) for spec in specs]
    if created:
        client.set_tag(created[-1], "complete", "yes")
    return True


def _create(client: MlflowClient, experiment: str, spec: RunSpec, tags: Mapping[str, str]) -> str:
    run = client.create_run(
        experiment, start_time=spec.start_time, run_name=spec.name, tags={**spec.tags, **tags, "current": "yes"}
    )
    identity = str(run.info.run_id)
    send(client, identity, spec.metrics, spec.params)
    if spec.data:
        _log_data(client, identity, spec.data)
    for place, text in spec.texts.items():
        client.log_text(identity, text, place)
    for file, folder in spec.files:
        client.log_artifact(identity, str(file), folder or None)
    client.set_terminated(identity, end_time=spec.end_time)
    return identity


def _log_data(client: MlflowClient, run: str, data: Sequence[DataSpec]) -> None:
    """Log data sets as inputs of a run, as MLflow's `log_input` does for files, but by our digests."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                one.name, one.digest, source_type="local", source=json.dumps({"uri": one.path}),
                profile=json.dumps(one.profile),
            ),
            [InputTag("mlflow.data.context", one.split)],
        )
        for one in data
    ]  # fmt: skip
    client.log_inputs(run, inputs)


def send(client: MlflowClient, run: str, points: Sequence[Point], params: Mapping[str, str]) -> None:
    """Log points and parameters in as few calls as MLflow's limits allow."""
    from mlflow.entities import Metric, Param

    metrics = [Metric(point.key, point.value, point.time, point.step) for point in points]
    entries = [Param(re.sub(r"[^\w\-. :/]", "_", key), value[:6000]) for key, value in params.items()]
    for start in range(0, len(metrics), BATCH["metrics"]):
        client.log_batch(run, metrics=metrics[start : start + BATCH["metrics"]])
    for start in range(0, len(entries), BATCH["params"]):
        client.log_batch(run, params=entries[start : start + BATCH["params"]])


def digest(*parts: bytes) -> str:
    """A content hash of several byte strings, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:32]
