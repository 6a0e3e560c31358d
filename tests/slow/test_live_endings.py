"""How a live run in MLflow ends: as its stage did, also where that is killed. The store is a real one."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STAGE = """
import sys, time
from pathlib import Path
from pipeline.paths import World
from pipeline.tracking_live import LiveSender
sender = LiveSender(World(Path("runs/tiny")), "train_vqgan", delay=0.1, period=0.2).start()
sys.stdin.readline()
sender.stop(sys.argv[1])
"""


def runs(folder):
    """(status, name) of all live runs."""
    if not (folder / "mlflow/mlflow.db").is_file():
        return []
    client = MlflowClient(f"sqlite:///{folder / 'mlflow/mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny/trainings")
    found = client.search_runs([experiment.experiment_id]) if experiment is not None else []
    return [(run.info.status, run.info.run_name) for run in found]


def wait_for(ready, what):
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.5)


@pytest.fixture
def folder(tmp_path):
    log = tmp_path / "runs/tiny/logs/train_vqgan.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"step": 1, "time": time.time(), "loss": 1.0}) + "\n")
    return tmp_path


@pytest.mark.parametrize("state", ["FINISHED", "FAILED", "KILLED", "kill -9", "Ctrl-C"])
def test_a_live_run_ends_as_its_stage_did(folder, state):
    env = {name: value for name, value in os.environ.items() if name not in ("MEDIM_LIVE", "MLFLOW_TRACKING_URI")}
    command = [sys.executable, "-c", textwrap.dedent(STAGE), state]
    stage = subprocess.Popen(
        command,
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: runs(folder) == [("RUNNING", "train_vqgan (running)")], "live run")
    if state == "kill -9":
        stage.kill()
        state = "KILLED"
    elif state == "Ctrl-C":  # the terminal sends it to the stage's whole group
        os.killpg(stage.pid, signal.SIGINT)
        state = "KILLED"
    else:
        stage.communicate("end\n", timeout=60)
    expected = [(state, f"train_vqgan ({state.lower()})")]
    wait_for(lambda: runs(folder) == expected, f"run that is {expected}, but {runs(folder)}")
    assert (folder / ".work/live/tiny.train_vqgan.log").is_file()
