"""Flows served without a worker, how soon a flow begins, and what is said where something is dead or missing."""

import os
import signal
import subprocess
import sys

import pytest

from benchmarks.small_flow import command_line, hold, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FIRST_LINE = {"worker": 15, "serve": 8}  # seconds on a machine that does nothing else


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
        assert small.seconds_to_first_line(run) < FIRST_LINE["serve"]
    finally:
        serve.terminate()
        serve.communicate(timeout=60)


def test_a_workers_flow_begins_soon(small):
    assert "starting the worker" in small.start()
    assert "starting" not in small.start(), "what runs stays as it is"
    run = small.run("--watch")
    assert small.state(run)[0] == "Completed"
    assert small.seconds_to_first_line(run) < FIRST_LINE["worker"]


def test_without_a_server_the_next_command_is_said(small, tmp_path):
    said = small.call("prefect", "deployment", "run", "paper-tables", code=1, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert said.strip().endswith(
        "no Prefect server answers at http://127.0.0.1:9/api: run `.venv/bin/python -m flows.start`"
    )
