"""A real MLflow server that is killed and started again while a stage trains, or a flow runs: all is there once."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.small_flow import STAGES, SmallFlow, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STEPS = 400  # of the training; it waits behind half of them until the server is gone, and then until it is back
PARAMS = "profile: tiny\nworld: tiny\nseed: 3\nthreads: 1\ntrain_medim: {steps: 400}\n"
TRAINING = f"""
    import time
    from pathlib import Path
    from pipeline.stage import stage_run
    from pipeline.tracking_live import LiveSender

    LiveSender.__init__.__defaults__ = (0.0, 0.5)  # begin at once, send twice a second
    out = Path("runs/tiny/models/medim")
    with stage_run(
        "train_medim", "medim", section={{"steps": {STEPS}}}, inputs=[], outputs=[out], use_torch=False
    ) as run:
        for step in range(1, {STEPS} + 1):
            run.log(step, {{"loss": 1 / step}})
            for after, file in (({STEPS} // 2, "gone"), (3 * {STEPS} // 4, "back")):
                while step == after and not Path(file).exists():
                    time.sleep(0.05)
        (run.work / "result").mkdir()
        run.place(run.work / "result", out)
"""


class Server:
    """`mlflow server` on a port of its own."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.folder, self.address, self.process = folder, f"http://127.0.0.1:{self.port}", None

    def start(self):
        """Start it and wait until it answers."""
        store = f"sqlite:///{self.folder / 'server.db'}"
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", self.port,
            "--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1",
        ]  # fmt: skip
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_for(self.answers, 90, lambda: (self.folder / "server.log").read_text()[-3000:])

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self):
        """As a machine that loses its power."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def live_points(server):
    """Steps in the server's runs of the training, each with how often it is there; {} while there is no run."""
    client = MlflowClient(server.address)
    experiment = client.get_experiment_by_name("tiny/trainings")
    runs = client.search_runs([experiment.experiment_id], "tags.current = 'yes'") if experiment is not None else []
    return [Counter(point.step for point in client.get_metric_history(run.info.run_id, "loss")) for run in runs]


def test_a_server_that_is_killed_and_comes_back_has_every_point_once(tmp_path, server):
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train_medim@medim.txt").write_text("hash\n")
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAINING))
    env = {name: value for name, value in os.environ.items() if name not in ("MEDIM_LIVE", "DVC_STAGE")}
    env |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": server.address}
    training = subprocess.Popen([sys.executable, "train.py"], cwd=tmp_path, env=env)
    wait_for(lambda: any(live_points(server)), 150, "the first live points")
    server.kill()
    (tmp_path / "gone").touch()
    server.start()
    assert training.poll() is None, "the training waits for it"
    (tmp_path / "back").touch()
    assert training.wait(120) == 0
    sync = [sys.executable, "-m", "pipeline.tracking", "sync"]
    for _ in range(2):
        done = subprocess.run(sync, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert live_points(server) == [Counter(range(1, STEPS + 1))]


def rows_of(server, table):
    """Row -> [values of its metric f1] in the server's current runs of a table."""
    client = MlflowClient(server.address)
    experiment = client.get_experiment_by_name(f"small/{table}")
    runs = client.search_runs([experiment.experiment_id], "tags.current = 'yes'") if experiment is not None else []
    return {
        run.info.run_name: [point.value for point in client.get_metric_history(run.info.run_id, "f1")]
        for run in runs
        if "f1" in run.data.metrics
    }


def test_a_flow_whose_server_was_killed_is_done_and_its_next_run_records_every_metric_once(tmp_path, server):
    small = SmallFlow(tmp_path / "small", MLFLOW_TRACKING_URI=server.address)
    try:
        small.start()
        run = small.run("--param", "retry_seconds=1")
        wait_for(lambda: small.notes("start", "train_downstream@one"), 120, lambda: f"{small.state(run)}")
        server.kill()
        wait_for(lambda: small.state(run)[0] in ("Failed", "Completed"), 120, lambda: f"{small.state(run)}")
        name, message = small.state(run)
        assert name == "Failed" and "pipeline.tracking sync" in message
        assert small.started() == sorted(STAGES) and small.is_clean(), "nothing of the work is lost"
        server.start()
        for _ in range(2):
            again = small.run("--watch")
            assert small.state(again)[0] == "Completed"
            assert small.started() == sorted(STAGES), "nothing ran again"
            assert rows_of(server, "figure5b") == {"MeDiM": [float(small.step)]}
    finally:
        small.start("--stop")
    wait_for(lambda: not small.processes(), 30, lambda: f"end of {small.processes()}")
