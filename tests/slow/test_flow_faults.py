"""Flows on a small real graph, with real DVC, Prefect and MLflow: the documented commands, and every way to break one.

Each test makes all five stages stale first, so none depends on another; they share one server.
"""

import fcntl
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.small_flow import STAGES, command_line, hold, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

GONE = 10  # seconds after which nothing of a cancelled flow is left


def test_two_flows_at_once_share_the_work_and_link_to_mlflow(small):
    """The documented commands on a fresh folder, in two terminals: MLflow's database does not exist yet either."""
    assert "next: " in small.said and "deployment run downstream-augmentation" in small.said
    small.make_stale()
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda name: small.run("--watch", name=name), ("downstream-augmentation", "paper-tables")))
    assert [small.state(run)[0] for run in runs] == ["Completed", "Completed"]
    assert small.started() == sorted(STAGES), "each stage ran once"
    assert small.is_clean()
    for note in small.notes("start"):
        pretended = ("pretended-0", "pretended-1") if note["stage"].startswith("train_downstream") else (None,)
        assert note["device"] in pretended
    first, second = small.notes("start", "train_downstream@one")[0], small.notes("start", "train_downstream@two")[0]
    early, late = sorted((first, second), key=lambda note: note["time"])
    if late["time"] < small.notes("end", early["stage"])[0]["time"]:  # together
        assert early["device"] != late["device"]
    artifacts = small.artifacts(runs[0])
    assert "MeDiM | step: " in artifacts["downstream-augmentation-tables"]
    assert "/#/experiments/" in artifacts["downstream-augmentation-figure5b"]
    others = small.artifacts(runs[1])
    assert "paper-tables-tables" in others
    assert {"downstream-augmentation-stages", "paper-tables-stages"} & {*artifacts, *others}


def test_a_cancelled_flow_leaves_no_process(small):
    run, before = hold(small)
    small.prefect("flow-run", "cancel", run)
    wait_for(lambda: not small.processes() - before, GONE, lambda: f"end of {small.processes() - before}")
    wait_for(lambda: small.state(run)[0] == "Cancelled", 30, lambda: small.state(run))
    assert small.started() == ["synthesize_pairs", "train_downstream@one", "train_downstream@two"]


def test_a_flow_that_is_cancelled_while_it_waits_for_dvc_leaves_no_process(small):
    small.make_stale()
    before = small.processes()
    with (small.folder / ".dvc/tmp/lock").open("a+") as lock:  # as `dvc push` holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = small.run()

        def asks():
            return any("status --json" in command_line(pid) for pid in small.processes() - before)

        wait_for(asks, 60, lambda: f"{small.state(run)}{small.log('worker')}")
        small.prefect("flow-run", "cancel", run)
        wait_for(lambda: not small.processes() - before, GONE, lambda: f"end of {small.processes() - before}")
    wait_for(lambda: small.state(run)[0] == "Cancelled", 30, lambda: small.state(run))
    assert small.started() == []


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
    assert small.started() == ["evaluate_downstream", "record_tables", "train_downstream@two"] and small.is_clean()


def test_a_transient_failure_is_tried_again_and_a_bug_is_not(small):
    small.make_stale(train_downstream_one=["transient"], train_downstream_two=["bug"])
    run = small.run("--watch", "--param", "retry_seconds=1", code=1)
    name, message = small.state(run)
    assert (
        name == "Failed"
        and "train_downstream@two (failed), evaluate_downstream (not run), record_tables (not run)" in message
    )
    assert small.started().count("train_downstream@one") == 2 and small.started().count("train_downstream@two") == 1
    assert len(small.notes("end", "train_downstream@one")) == 1
