"""Starting and ending of background processes, and what is said where something is missing; without a server."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from process_trees import lives, wait_for

from flows import flow_runs, start
from flows.background import Background
from flows.flow_runs import ended_runs, living_runs
from flows.server_address import answers, host_and_port, is_healthy, is_local, page
from flows.slots import try_lock
from flows.start import StartError, make_pool, pool_template, start_server

ROOT = Path(__file__).parents[2]
CLOSED = "http://127.0.0.1:9/api"


def test_addresses():
    assert host_and_port("http://127.0.0.1:4200/api") == ("127.0.0.1", 4200)
    assert host_and_port("https://prefect.example/api") == ("prefect.example", 443)
    assert is_local("http://localhost:4200/api") and not is_local("http://10.0.0.7:4200/api")
    assert page("http://127.0.0.1:4200/api") == "http://127.0.0.1:4200"
    assert answers(None) and not answers(CLOSED) and not is_healthy(CLOSED)


def test_a_background_process_is_started_once_found_again_and_ended(tmp_path):
    one, same = Background("x", tmp_path), Background("x", tmp_path)
    code = "import subprocess, sys, time; print('up', flush=True); subprocess.Popen(['sleep', '300']); time.sleep(300)"
    command = [sys.executable, "-c", code]
    assert not one.is_alive() and not one.stop()
    assert one.start(command, os.environ) and not same.start(command, os.environ)
    assert same.is_alive() and lives(same.pid())
    wait_for(lambda: same.last_lines() == "up", 10, "its first line")
    assert same.stop() and not one.is_alive()
    assert one.start(command, os.environ), "it can be started again"
    one.stop()


def test_a_run_is_alive_from_the_moment_that_others_see_it(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    seen: list[list[str]] = []
    move = os.replace

    def look_first(old, new):
        seen.append(ended_runs(folder))
        move(old, new)
        seen.append(ended_runs(folder))

    monkeypatch.setattr(flow_runs.os, "replace", look_first)
    flow_runs.say_alive("one", folder)
    assert seen == [[], []] and living_runs(folder) == ["one"]
    flow_runs._HELD.pop().release()
    assert ended_runs(folder) == ["one"]


def test_who_looks_for_a_moment_does_not_keep_a_process_from_starting(tmp_path):
    one = Background("x", tmp_path)
    looking = try_lock(tmp_path / "x.lock")
    threading.Timer(0.2, looking.release).start()
    assert one.start([sys.executable, "-c", "import time; time.sleep(300)"], os.environ)
    one.stop()


def test_a_process_that_ends_at_once_is_told_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "PREFECT_COMMAND", (sys.executable, "-c", "import sys; sys.exit('database is gone')"))
    with pytest.raises(StartError, match=r"(?s)ended while it started; .*server.log ends with:\ndatabase is gone"):
        start_server(Background("server", tmp_path), CLOSED)


def test_a_server_elsewhere_is_not_started(tmp_path):
    with pytest.raises(StartError, match="does not answer; unset PREFECT_API_URL to start one here"):
        start_server(Background("server", tmp_path), "http://10.255.255.1:4200/api")


def test_another_program_on_the_port_is_named(tmp_path):
    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    try:
        assert answers(url) and not is_healthy(url)
        with pytest.raises(StartError, match=f"another program listens at {page(url)}"):
            start_server(Background("server", tmp_path), url)
    finally:
        server.shutdown()
        server.server_close()


def test_the_command_says_where_to_run_it(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.start"], cwd=tmp_path, env=env, capture_output=True, text=True
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "prefect.yaml is missing: run this in the repository's root\n"


class KnownPool:
    """Of Prefect's client what make_pool asks: one pool, kept as it was made."""

    def __init__(self, template):
        self.base_job_template = template
        self.made = None

    def read_work_pool(self, _):
        return self

    def update_work_pool(self, name, pool):
        assert name == "medim" and pool.model_fields_set == {"description", "base_job_template"}  # all else is kept
        self.made = pool


def test_the_pool_runs_flows_in_this_folder_with_this_python(tmp_path):
    variables = pool_template(tmp_path)["variables"]["properties"]
    assert variables["command"]["default"] == f"{sys.executable} -m prefect.engine"
    assert variables["working_dir"]["default"] == str(tmp_path)


def test_the_pool_of_another_folder_is_left_alone_unless_that_folder_is_gone(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    client = KnownPool(pool_template(there))
    make_pool(client, "medim", here)
    assert client.made.base_job_template == pool_template(here)
    there.mkdir()
    (there / "prefect.yaml").touch()
    with pytest.raises(StartError, match=f"runs the flows of {there}; use a server of your own: PREFECT_API_URL"):
        make_pool(client, "medim", here)


def test_flows_import_nothing_heavy():
    """A flow is there seconds after it was asked for: torch, MLflow and the science stay out of its process."""
    code = (
        "import sys, flows.downstream_augmentation, flows.paper_tables, flows.start, flows.serve, flows.supervise\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'torch', 'transformers', 'mlflow', 'medim', 'stages', 'dvc', 'numpy', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
