"""A small real graph under the project's own flows: five stages of two seconds, with a Prefect server of its own.

For tests and for benchmarks/orchestration.py. The folder has prefect.yaml and prefect.toml of the repository and links
to flows/ and pipeline/; only dvc.yaml is its own. Stages do what behaviour.json says (see STAGE) and note every start
and end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STAGES = {"synthesize_pairs", "train_downstream@one", "train_downstream@two", "evaluate_downstream", "record_tables"}
SECONDS = 2  # of each stage
PATIENCE = 120  # seconds until a flow is where it is to be broken

DVC_YAML = """
stages:
  synthesize_pairs:
    cmd: python stage.py synthesize_pairs runs/small/pairs
    params: [step]
    outs: [runs/small/pairs]
  train_downstream:
    matrix: {model: "${train_downstream.models}"}
    cmd: python stage.py train_downstream@${item.model} runs/small/models/${item.model}
    deps: [runs/small/pairs]
    params: [threads]
    outs: ["runs/small/models/${item.model}"]
  evaluate_downstream:
    cmd: python stage.py evaluate_downstream runs/small/metrics/downstream.json
    deps: [runs/small/models]
    outs: [runs/small/metrics/downstream.json]
  record_tables:
    cmd: python stage.py record_tables runs/small/tables
    deps: [runs/small/metrics]
    outs: [runs/small/tables]
"""
PARAMS = "profile: small\nworld: small\nseed: 0\nthreads: 1\nstep: {step}\ntrain_downstream: {{models: [one, two]}}\n"

STAGE = f"""
    import json, os, subprocess, sys, time
    from pathlib import Path

    name, out = sys.argv[1], Path(sys.argv[2])

    def note(what, **more):
        line = {{"stage": name, "what": what, "time": time.time(), "pid": os.getpid(), **more}}
        with open("notes.jsonl", "a") as file:
            file.write(json.dumps(line) + "\\n")

    todo = Path("behaviour.json")
    behaviour = json.loads(todo.read_text())
    now = behaviour[name].pop(0) if behaviour.get(name) else "run"
    if now != "run":
        todo.with_suffix(".new").write_text(json.dumps(behaviour))
        os.replace(todo.with_suffix(".new"), todo)
    note("start", device=os.environ.get("CUDA_VISIBLE_DEVICES"))
    print(f"{{name}}: {{now}}", flush=True)
    time.sleep({SECONDS})
    if now == "hold":  # with a child in the group and one in a session of its own
        for session in (False, True):
            child = subprocess.Popen(["sleep", "600"], start_new_session=session)
            note("child", child=child.pid)
        time.sleep(600)
    if now == "transient":
        sys.exit(os.EX_TEMPFAIL)
    if now == "bug":
        raise ValueError("a bug")
    out.parent.mkdir(parents=True, exist_ok=True)
    step = next(line for line in Path("params.yaml").read_text().splitlines() if line.startswith("step"))
    if name == "record_tables":
        out.mkdir()
        cells = [{{"row": "MeDiM", "column": "x/F1", "metric": "F1", "value": int(step.split()[1]), "paper": None}}]
        table = {{"id": "figure5b", "title": "Downstream", "profile": "small", "cells": cells}}
        (out / "figure5b.json").write_text(json.dumps(table))
        (out / "figure5b.md").write_text(f"| row | F1 |\\n| --- | --- |\\n| MeDiM | {{step}} |\\n")
    else:
        out.write_text(json.dumps({{"stage": name, "step": step}}))
    note("end")
"""


class SmallFlow:
    """The folder, its server and its worker."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.variables = folder, variables
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}/api"
        folder.mkdir()
        for name in ("flows", "pipeline"):
            (folder / name).symlink_to(ROOT / name)
        for name in ("prefect.yaml", "prefect.toml"):
            shutil.copy2(ROOT / name, folder / name)
        (folder / "dvc.yaml").write_text(DVC_YAML)
        (folder / "stage.py").write_text(textwrap.dedent(STAGE))
        self.step = 0
        self.typed: dict[str, float] = {}  # flow run -> time at which its command was typed
        self.make_stale()
        self.call(sys.executable, "-m", "dvc", "init", "--no-scm", "-q")
        (folder / ".dvc/config").write_text(
            "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"
        )

    def environment(self, **more: str) -> dict[str, str]:
        """A shell's variables, with addresses and caches of this folder alone, and a mark on every process."""
        private = ("PREFECT", "MLFLOW", "DVC_", "MEDIM_", "CUDA_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(private)}
        return env | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
            "PREFECT_API_URL": self.url,
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
            "DVC_NO_ANALYTICS": "1",
            "DO_NOT_TRACK": "true",
            "MEDIM_SLOTS": str(self.folder / ".slots"),
            "MEDIM_GPUS": "pretended-0,pretended-1",
            "SMALL_FLOW": str(self.folder),
            **self.variables,
            **more,
        }

    def call(self, *command: str, code: int = 0, **env: str) -> str:
        """Run a command; returns what it said."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        said = f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-6000:]}"
        assert done.returncode == code, said + self.log("worker") + self.log("server")
        return done.stdout

    def log(self, name: str) -> str:
        """The end of a log."""
        path = self.folder / f".prefect/{name}.log"
        return f"\n--- {name}.log\n{path.read_text()[-4000:]}" if path.is_file() else ""

    def start(self, *options: str) -> str:
        """The documented command."""
        return self.call(sys.executable, "-m", "flows.start", *options)

    def prefect(self, *words: str, code: int = 0) -> str:
        """`prefect ...`."""
        return self.call("prefect", *words, code=code)

    def run(self, *options: str, code: int = 0, name: str = "downstream-augmentation") -> str:
        """`prefect deployment run NAME`; the id of the flow run."""
        typed = time.time()
        run = run_id(self.prefect("deployment", "run", name, *options, code=code))
        self.typed[run] = typed
        return run

    def make_stale(self, **behaviour: list[str]) -> None:
        """Every stage is to run, and does what is said, one entry a run; then it runs as usual."""
        self.step += 1
        (self.folder / "params.yaml").write_text(PARAMS.format(step=self.step))
        self.behave(**behaviour)
        (self.folder / "notes.jsonl").write_text("")

    def behave(self, **behaviour: list[str]) -> None:
        """What stages do next; `train_downstream_one` for train_downstream@one."""
        named = {re.sub("^(train_downstream)_", r"\1@", stage): runs for stage, runs in behaviour.items()}
        (self.folder / "behaviour.json").write_text(json.dumps(named))

    def notes(self, what: str, stage: str | None = None) -> list[dict[str, Any]]:
        """Notes of one kind, in order."""
        lines = [json.loads(line) for line in (self.folder / "notes.jsonl").read_text().splitlines()]
        return [line for line in lines if line["what"] == what and stage in (None, line["stage"])]

    def started(self) -> list[str]:
        """Names of the stages that ran, once for each run."""
        return sorted(note["stage"] for note in self.notes("start"))

    def is_clean(self) -> bool:
        """Whether DVC finds nothing stale."""
        return self.call(sys.executable, "-m", "dvc", "status").strip() == "Data and pipelines are up to date."

    def processes(self) -> set[int]:
        """Ids of all processes that this folder's commands started and that live."""
        mark, found = f"SMALL_FLOW={self.folder}\0".encode(), set()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                lives = (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if lives and mark in (path / "environ").read_bytes() + b"\0":
                    found.add(int(path.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def client(self) -> Any:
        """Prefect's own client for this server."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.url)

    def state(self, run: str) -> tuple[str, str]:
        """(name, message) of a flow run's state."""
        with self.client() as client:
            state = client.read_flow_run(run).state
        return state.name, state.message or ""

    def seconds_to_first_line(self, run: str) -> float:
        """Seconds from the command, whose own start counts too, to the flow's own first line."""
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
        from prefect.client.schemas.sorting import LogSort

        with self.client() as client:
            chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
            logs = client.read_logs(chosen, limit=200, sort=LogSort.TIMESTAMP_ASC)
        first = next(log.timestamp for log in logs if "asking DVC what is stale" in log.message)
        return float(first.timestamp()) - self.typed[run]

    def artifacts(self, run: str) -> dict[str, Any]:
        """Key -> data of the artifacts of a flow run."""
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        with self.client() as client:
            chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
            return {one.key: one.data for one in client.read_artifacts(artifact_filter=chosen, limit=50)}


def hold(small: SmallFlow) -> tuple[str, set[int]]:
    """Start a flow, which finishes two stages and hangs in train_downstream@two; its id and the processes before it."""
    small.make_stale(train_downstream_two=["hold"])
    before = small.processes()
    run = small.run()

    def hangs() -> bool:
        return bool(small.notes("end", "train_downstream@one")) and len(small.notes("child")) == 2

    wait_for(hangs, PATIENCE, lambda: f"{run} {small.state(run)}{small.log('worker')}")

    def records() -> bool:
        return any("train_downstream@one" in command_line(pid) for pid in small.processes() - before)

    wait_for(lambda: not records(), 60, "the end of DVC's process for train_downstream@one")
    return run, before


def command_line(pid: int) -> str:
    """A process' command, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def run_id(said: str) -> str:
    """The id in what `prefect deployment run` prints."""
    found = re.search(r"UUID: ([0-9a-f-]{36})", said)
    assert found, said
    return found[1]


def wait_for(condition: Callable[[], Any], seconds: float, what: str | Callable[[], object]) -> Any:
    """Wait until `condition()` is true; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.1)
    return value
