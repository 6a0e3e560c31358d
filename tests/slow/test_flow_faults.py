"""Flows on a small real graph, with real DVC, Prefect and MLflow: the documented commands, and every way to break one.

Each test makes all five stages stale first, so none depends on another; they share one server.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_flow import STAGES, SmallFlow, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE = 120  # seconds until a flow is where it is to be broken
GONE = 10  # seconds after which nothing of a cancelled flow is left
FIRST_LINE = {"worker": 15, "serve": 8}  # seconds


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    flow = SmallFlow(tmp_path_factory.mktemp("faults") / "small")
    flow.said, flow.first_line = flow.start(), {}
    yield flow
    flow.start("--stop")
    wait_for(lambda: not flow.processes(), 30, lambda: f"end of {flow.processes()}")


def hold(small, *options):
    """A flow that has finished two stages and hangs in train_downstream@two; its id, and the processes before it."""
    small.make_stale(train_downstream_two=["hold"])
    before = small.processes()
    run = small.run(*options)

    def hangs():
        return small.notes("end", "train_downstream@one") and len(small.notes("child")) == 2

    wait_for(hangs, PATIENCE, lambda: f"{run} {small.state(run)}{small.log('worker')}")
    wait_for(lambda: "train_downstream@one" in (small.folder / "dvc.lock").read_text(), 30, "its entry in dvc.lock")
    time.sleep(3)  # DVC has recorded train_downstream@one
    return run, before


def test_the_documented_commands_end_completed_with_links_to_mlflow(small):
    assert "next: " in small.said and "deployment run downstream-augmentation" in small.said
    assert "starting" not in small.start(), "what runs stays as it is"
    small.make_stale()
    run = small.run("--watch")
    assert small.state(run)[0] == "Completed"
    assert small.started() == sorted(STAGES) and small.is_clean()
    devices = {note["stage"]: note["device"] for note in small.notes("start")}
    trainings = {devices.pop("train_downstream@one"), devices.pop("train_downstream@two")}
    assert trainings == {"pretended-0", "pretended-1"} and not set(devices.values()) - {None}
    artifacts = small.artifacts(run)
    assert "MeDiM | step: " in artifacts["downstream-augmentation-tables"]
    assert "/#/experiments/" in artifacts["downstream-augmentation-figure5b"]
    assert '"state": "done"' in artifacts["downstream-augmentation-stages"]
    assert (small.folder / "mlflow/mlflow.db").is_file()
    small.first_line["worker"] = small.seconds_to_first_line(run)


def test_a_cancelled_flow_leaves_no_process(small):
    run, before = hold(small)
    small.prefect("flow-run", "cancel", run)
    wait_for(lambda: not small.processes() - before, GONE, lambda: f"end of {small.processes() - before}")
    wait_for(lambda: small.state(run)[0] == "Cancelled", 30, lambda: small.state(run))
    assert small.started() == ["synthesize_pairs", "train_downstream@one", "train_downstream@two"]


def test_after_a_killed_worker_a_second_run_does_only_what_was_not_done(small):
    run, before = hold(small)
    worker = int((small.folder / ".prefect/worker.lock").read_text())
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not small.processes() - before, 30, lambda: f"end of {small.processes() - before}")
    wait_for(lambda: small.state(run)[0] == "Crashed", 30, lambda: small.state(run))
    (small.folder / "notes.jsonl").write_text("")
    assert "starting the worker" in small.start()
    again = small.run("--watch")
    assert small.state(again)[0] == "Completed"
    assert small.started() == ["evaluate", "record_tables", "train_downstream@two"] and small.is_clean()


def test_two_flows_at_once_share_the_work(small):
    small.make_stale()
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: small.run("--watch"), range(2)))
    assert [small.state(run)[0] for run in runs] == ["Completed", "Completed"]
    assert small.started() == sorted(STAGES), "each stage ran once"
    assert small.is_clean()


def test_a_transient_failure_is_tried_again_and_a_bug_is_not(small):
    small.make_stale(train_downstream_one=["transient"], train_downstream_two=["bug"])
    run = small.run("--watch", "--param", "retry_seconds=1", code=1)
    name, message = small.state(run)
    assert name == "Failed" and "train_downstream@two (failed), evaluate (not run), record_tables (not run)" in message
    assert small.started().count("train_downstream@one") == 2 and small.started().count("train_downstream@two") == 1
    assert len(small.notes("end", "train_downstream@one")) == 1


def test_a_flow_that_died_with_its_worker_is_told_at_the_next_start(small):
    run, before = hold(small)
    worker = int((small.folder / ".prefect/worker.lock").read_text())
    engines = [pid for pid in small.processes() - before if "prefect.engine" in command_line(pid)]
    for pid in [worker, *engines]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not small.processes() - before, 30, lambda: f"end of {small.processes() - before}")
    assert small.state(run)[0] == "Running"
    assert f"flow run {run} had died" in small.start()
    assert small.state(run)[0] == "Crashed"


def command_line(pid):
    """A process' command, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_flows_are_served_without_a_worker(small):
    small.start("--stop")
    small.start("--no-worker")
    small.make_stale()
    command = [sys.executable, "-m", "flows.serve"]
    serve = subprocess.Popen(command, cwd=small.folder, env=small.environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert serve.stdout.readline().startswith("serving downstream-augmentation, paper-tables; next")
        run = small.run("--watch")
        assert small.state(run)[0] == "Completed" and small.is_clean()
        small.first_line["serve"] = small.seconds_to_first_line(run)
    finally:
        serve.terminate()
        serve.communicate(timeout=60)


def test_the_first_line_comes_soon(small):
    assert small.first_line["worker"] < FIRST_LINE["worker"] and small.first_line["serve"] < FIRST_LINE["serve"]


def test_without_a_server_the_next_command_is_said(small, tmp_path):
    said = small.call("prefect", "deployment", "run", "paper-tables", code=1, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert said.strip().endswith("no Prefect server answers at http://127.0.0.1:9/api: run `python -m flows.start`")
