"""MLflow shows the files: everything once, again after a deletion, and never at a training's cost."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tracking, tracking_store
from pipeline.paths import World
from pipeline.tracking_live import Connection, LiveSender, Sheets, Tail, follow
from pipeline.tracking_store import BATCH, Point, StoreError, link, locked_store, pages, slug, without_password
from pipeline.tracking_tables import column_keys, curve_points, row_costs, table_runs

ROOT = Path(__file__).parents[2]
TINY = World(Path("runs/tiny"))
FID, BLEU = "phantom_cxr/FID (phantom features)", "phantom_cxr/BLEU-1 (coco)"


def cell(row, column, value, **extra):
    common = {"low": None, "high": None, "n": 4, "seeds": 1, "better": "lower", "paper": None}
    return {"row": row, "column": column, "metric": column, "value": value} | common | extra


TABLE = {
    "id": "table1",
    "title": "Table 1",
    "profile": "tiny",
    "cells": [
        cell("UniDisc", FID, 71.5, paper=94.9),
        cell("UniDisc", BLEU, None),
        cell("MeDiM", FID, 16.6, low=15.0, high=18.0),
        cell("MeDiM", BLEU, 0.5),
        cell("trivial: mean report", BLEU, 0.125),
    ],
}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def log_line(step, **values):
    return json.dumps({"step": step, "time": 1000.0 + step, **values}) + "\n"


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write(TINY.table("table1"), json.dumps(TABLE))
    write(TINY.table("table1", ".md"), "| a | b |\n")
    write(TINY.table("table1", ".html"), "<table></table>")
    write(TINY.table("table1", ".csv"), "a,b\n")
    write(TINY.logs("train_medim@medim"), "".join(log_line(s, loss=1 / s, **{"val/F1": 0.5}) for s in range(1, 1501)))
    params = {"params": {"optim": {"lr": 1e-3}, "methods": ["a"]}, "seed": 1, "threads": 1, "code": "abc"}
    costs = {"instance": "train_medim@medim", "seconds": 60.0, "peak_bytes": 5, "examples": 3, "parameters": 7}
    write(TINY.costs("train_medim@medim"), json.dumps(costs | params))
    write(TINY.metrics("medim"), json.dumps({"model": "medim", "rows": {"MeDiM": {}}}))
    write(TINY.figure("figure4"), "png")
    write(TINY.figure("medim_training"), "png")
    return tmp_path


def test_keys_are_slugs():
    other = cell("MeDiM", "phantom_pathology/F1", 1)
    assert column_keys(TABLE) == {FID: "fid_phantom_features", BLEU: "bleu-1_coco"}  # all of one dataset
    assert column_keys(TABLE | {"cells": [*TABLE["cells"], other]}) == {
        FID: "phantom_cxr/fid_phantom_features", BLEU: "phantom_cxr/bleu-1_coco",
        "phantom_pathology/F1": "phantom_pathology/f1",
    }  # fmt: skip
    assert column_keys({"id": "t", "cells": [cell("a", "F1", 1)]}) == {"F1": "f1"}
    assert slug("a//B (c)/ d%") == "a/b_c/d"


@given(st.text())
def test_a_slug_is_a_key_that_mlflow_takes(title):
    key = slug(title)
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_/.-")
    assert key == os.path.normpath(key) or key == ""
    assert slug(key) == key


def test_two_columns_with_one_key_are_an_error():
    with pytest.raises(ValueError, match="have one metric key 'fid'"):
        column_keys({"id": "t", "cells": [cell("a", "FID", 1), cell("a", "fid", 1)]})


def test_rows_are_runs_in_the_table_s_order(world):
    runs = table_runs(TABLE, column_keys(TABLE), row_costs(TINY))
    assert [run.name for run in runs] == ["UniDisc", "MeDiM", "trivial: mean report", "(the table)"]
    starts = [run.start_time for run in runs]
    assert starts[3] > starts[0] > starts[1] > starts[2]
    assert [run.end_time - run.start_time for run in runs] == [0, 60_000, 0, 0]  # as long as the model trained
    assert max(run.end_time for run in runs) <= time.time() * 1000
    metrics = {point.key: point.value for point in runs[1].metrics}
    assert metrics == {
        "fid_phantom_features": 16.6, "low/fid_phantom_features": 15.0,
        "high/fid_phantom_features": 18.0, "n/fid_phantom_features": 4,
        "bleu-1_coco": 0.5, "n/bleu-1_coco": 4,
        "work/seconds": 60, "work/peak_bytes": 5, "work/parameters": 7, "work/examples": 3,
    }  # fmt: skip
    assert "bleu-1_coco" not in {point.key for point in runs[0].metrics}  # not measured


def test_models_of_one_row_keep_their_costs_apart(world):
    """MeDiM's row has MeDiM's, not those of the last variant or seed; a variant's own row has its own."""
    for name, seconds in (("medim_3x", 180.0), ("medim_seed2", 61.0)):
        write(TINY.costs(f"train_medim@{name}"), json.dumps({"seconds": seconds}))
        write(TINY.metrics(name), json.dumps({"model": name, "rows": {"MeDiM": {}}}))
    costs = row_costs(TINY)
    assert [costs[row]["seconds"] for row in ("MeDiM", "medim_3x")] == [60.0, 180.0]


def test_the_receipt_depends_on_tables_and_figures_alone(world):
    tracking.write_receipt(TINY)
    first = TINY.receipt().read_text()
    assert list(json.loads(first)) == ["content"]
    write(TINY.costs("train_medim@medim"), "{}")
    tracking.write_receipt(TINY)
    assert TINY.receipt().read_text() == first
    write(TINY.figure("figure4"), "other")
    tracking.write_receipt(TINY)
    assert TINY.receipt().read_text() != first


def runs_of(name, current="yes"):
    with locked_store() as client:
        experiment = client.get_experiment_by_name(name)
        found = client.search_runs([experiment.experiment_id], f"tags.current = '{current}'", max_results=1000)
        return client, experiment, list(found)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (None, ".venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db --port 5000"),
        ("http://10.0.0.1:5000", "at http://10.0.0.1:5000"),
        (
            "postgresql+psycopg://u:p@host/m",
            '.venv/bin/mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI" --port 5000',
        ),
    ],
)
def test_how_the_pages_are_opened_is_said_without_a_password(uri, said, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert pages() == said


def test_sync_with_a_real_store(world, capsys):
    """One store for all of it, since creating one takes seconds."""
    write(Path("mlflow/mlflow.partial"), "a store whose making was killed")
    assert tracking.main(["sync"]) == 0
    assert not list(Path("mlflow").glob("*.partial*"))
    said = capsys.readouterr().out
    assert "tiny/table1     recorded   http://127.0.0.1:5000/#/experiments/" in said
    assert "mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db" in said
    client, experiment, runs = runs_of("tiny/table1")
    assert [run.info.run_name for run in runs] == ["(the table)", "UniDisc", "MeDiM", "trivial: mean report"]
    view = json.loads(experiment.tags["mlflow.sharedViewState.paper"])
    columns = ["metrics.`fid_phantom_features`", "metrics.`bleu-1_coco`", "params.`profile`"]
    assert view["selectedColumns"] == columns
    assert view["columnOrder"] == ["attributes.`Run Name`", "runDateAndNestInfo", *columns, "duration"]
    assert set(view["columnWidths"]) == {"attributes.`Run Name`", "runDateAndNestInfo", *columns}
    assert runs[2].data.metrics["fid_phantom_features"] == 16.6
    artifacts = {file.path for file in client.list_artifacts(runs[0].info.run_id)}
    assert artifacts == {"table.html", "table.md", "table.csv", "table.json"}

    client, _, trainings = runs_of("tiny/trainings")
    (training,) = trainings
    assert training.info.run_name == "train_medim@medim"
    assert training.data.params == {"optim.lr": "0.001", "methods": '["a"]', "seed": "1", "threads": "1"}
    assert training.data.metrics["work/seconds"] == 60
    assert [file.path for file in client.list_artifacts(training.info.run_id, "figures")] == [
        "figures/medim_training.png"
    ]
    curve = client.get_metric_history(training.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(s, 1 / s) for s in range(1, 1501)]

    client, _, (figures,) = runs_of("tiny/figures")
    assert [file.path for file in client.list_artifacts(figures.info.run_id)] == ["figure4.png", "medim_training.png"]
    assert f"/runs/{figures.info.run_id}/artifacts?workflowType=machine_learning" in said

    assert not any(one.changed for one in tracking.sync())  # the same files: nothing new
    write(TINY.table("table1"), json.dumps(TABLE | {"cells": TABLE["cells"][:4]}))
    assert [one.changed for one in tracking.sync()] == [True, False, False]
    assert len(runs_of("tiny/table1")[2]) == 3
    assert len(runs_of("tiny/table1", "no")[2]) == 4
    write(TINY.table("table1"), json.dumps(TABLE))  # and back: the old runs are current again
    tracking.sync()
    assert [run.info.run_id for run in runs_of("tiny/table1")[2]] == [run.info.run_id for run in runs]

    client.delete_run(runs[1].info.run_id)  # somebody deletes a row, and the whole experiment
    client.delete_experiment(experiment.experiment_id)
    tracking.sync()
    assert len(runs_of("tiny/table1")[2]) == 4

    sending_live(client)


def sending_live(client):
    """A live run grows and gets its sheet while the stage runs; the final sync puts the whole training in its place."""
    instance, calls, seen = "train_vqgan", [], []
    log = TINY.logs(instance)
    write(log, log_line(1, loss=1.0) + log_line(2, loss=0.5))

    def wait(_seconds):
        calls.append([point.step for run in _live_runs(instance) for point in _history(client, run)])
        seen.append([_sheet(client, run) for run in _live_runs(instance)])
        write(TINY.figure("vqgan_training"), f"png {len(calls)}")
        with log.open("a") as file:
            file.write(log_line(len(calls) + 2, loss=0.25))
        return len(calls) == 3

    assert follow(Tail(log), Sheets(TINY, instance), Connection(TINY, instance), wait, period=0.0) == 0
    assert calls == [[], [1, 2, 3], [1, 2, 3, 4]]
    assert seen == [[], ["png 1"], ["png 2"]]
    assert [_sheet(client, run) for run in _live_runs(instance)] == ["png 3"]
    _sync_replaces(client, instance)


def _sync_replaces(client, instance):
    write(TINY.logs(instance), "".join(log_line(s, loss=1.0) for s in range(1, 6)))
    write(TINY.costs(instance), json.dumps({"instance": instance, "seconds": 1.0}))
    tracking.sync()
    whole = _live_runs(instance)
    assert [run.info.run_name for run in whole] == [instance]
    assert [point.step for point in _history(client, whole[0])] == [1, 2, 3, 4, 5]
    assert _sheet(client, whole[0]) == TINY.figure("vqgan_training").read_text()


def _sheet(client, run):
    """Text of the sheet that a run holds now; None: no sheet."""
    files = [file.path for file in client.list_artifacts(run.info.run_id, "figures")]
    assert files in ([], ["figures/vqgan_training.png"])
    return Path(client.download_artifacts(run.info.run_id, files[0])).read_text() if files else None


def _history(client, run):
    return client.get_metric_history(run.info.run_id, "loss")


@pytest.mark.slow
def test_the_sending_process(world):
    tracking.sync()
    client, _, _ = runs_of("tiny/trainings")
    log = TINY.logs("train_vqgan")
    write(log, log_line(1, loss=1.0) + log_line(2, loss=0.5))
    sender = LiveSender(TINY, "train_vqgan", delay=0.0, period=0.2).start()
    try:
        run = _wait(lambda: _live_runs("train_vqgan"), 60)[0]
        _wait(lambda: len(_history(client, run)) == 2, 20)
        with log.open("a") as file:
            file.write(log_line(3, loss=0.25) + '{"step": 4, "lo')
        write(TINY.figure("vqgan_training"), "png 200")
        _wait(lambda: len(_history(client, run)) == 3, 20)
        _wait(lambda: _sheet(client, run) == "png 200", 20)
        write(TINY.figure("vqgan_training"), "png 600")
        _wait(lambda: _sheet(client, run) == "png 600", 20)
    finally:
        sender.stop("FINISHED")
    _sync_replaces(client, "train_vqgan")


def _live_runs(instance):
    with locked_store() as client:
        if client.get_experiment_by_name("tiny/trainings") is None:
            return []
    return [run for run in runs_of("tiny/trainings")[2] if run.data.tags["group"] == instance]


def _wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


@pytest.mark.slow
def test_four_first_starts_at_once_make_one_whole_store(world):
    command = [sys.executable, "-m", "pipeline.tracking", "sync"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0, 0]
    assert len(runs_of("tiny/table1")[2]) == 4
    assert runs_of("tiny/table1", "no")[2] == []


def test_a_server_that_is_away_is_said(world, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert tracking.main(["sync"]) == 1
    assert "start the server, or unset MLFLOW_TRACKING_URI" in capsys.readouterr().err
    with pytest.raises(StoreError), locked_store():
        pass


def test_an_unknown_world_lists_those_there_are(world, capsys):
    assert tracking.main(["sync", "--world", "huge"]) == 2
    assert "there are tiny" in capsys.readouterr().err


def test_curves_leave_out_what_was_not_finite():
    assert list(curve_points([log_line(1, loss=None, **{"val/F1": 0.5})])) == [Point("val/f1", 0.5, 1_001_000, 1)]


def test_a_broken_sender_never_stops_a_stage(world, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    LiveSender(TINY, "train_medim@medim").start().stop("FINISHED")
    monkeypatch.undo()


def test_a_store_that_never_answers_costs_a_stage_three_seconds(world, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections, says nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        sender = LiveSender(TINY, "train_medim@medim", delay=0.0).start()
        deaf.settimeout(120)
        asked, _ = deaf.accept()  # the sending hangs now
        before = time.monotonic()
        sender.stop("FINISHED")
        assert 2 < time.monotonic() - before < 5
        asked.close()
    assert sender._process.poll() is not None


def test_no_password_is_printed(world, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:se@cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError) as failed, locked_store():
        pass
    assert "cret" not in str(failed.value) and "127.0.0.1:9" in str(failed.value)
    assert failed.value.__suppress_context__
    assert "cret" not in pages() and "cret" not in link("1")
    assert without_password("postgresql+psycopg://user:p%40ss@host:5432/mlflow") == (
        "postgresql+psycopg://user:***@host:5432/mlflow"
    )
    assert without_password("sqlite:////x/mlflow.db, a:b@c") == "sqlite:////x/mlflow.db, a:b@c"


def test_links_lead_where_the_user_has_the_pages(monkeypatch):
    monkeypatch.setenv("MEDIM_MLFLOW_PAGES", "http://127.0.0.1:5001/")
    assert link("7").startswith("http://127.0.0.1:5001/#/experiments/7/")


def test_who_keeps_the_store_is_said_and_not_waited_for_for_ever(world, monkeypatch, capsys):
    monkeypatch.setattr(tracking_store, "TOLD", 0.2)
    monkeypatch.setattr(tracking_store, "PATIENCE", 1.0)
    with locked_store():
        with pytest.raises(StoreError, match=rf"the process {os.getpid()} has kept .*store.lock"), locked_store():
            pass
        assert f"waiting for the process {os.getpid()}, which has" in capsys.readouterr().err


def test_uploads_have_more_patience_and_the_user_the_last_word(monkeypatch):
    for name, value in tracking_store.SHORT.items():
        monkeypatch.setenv(name, value)
    timeout, retries = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.setenv(retries, "7")
    with tracking_store.uploading():
        assert (os.environ[timeout], os.environ[retries]) == ("600", "7")
    assert (os.environ[timeout], os.environ[retries]) == ("10", "7")


def test_batches_respect_mlflow_s_limits():
    from mlflow.utils import validation

    assert BATCH["metrics"] <= validation.MAX_METRICS_PER_BATCH
    assert BATCH["params"] <= validation.MAX_PARAMS_TAGS_PER_BATCH
