"""`python -m flows.start` starts what flows need and says what to type next; what runs already stays as it is.

That is: a Prefect server (SQLite under .prefect/, bound to loopback), the work pool of this folder, the deployments of
prefect.yaml and a worker. They go on in the background, with logs under .prefect/. After a crash of any of them the
same command starts what is missing. `--stop` ends worker and server; `--no-worker` is for `python -m flows.serve` and
for workers elsewhere.

One variable each chooses otherwise: PREFECT_API_URL another address (a server elsewhere is used, not started),
PREFECT_SERVER_DATABASE_CONNECTION_URL another database (`postgresql+asyncpg://user:password@host/prefect`),
PREFECT_HOME another folder than .prefect/.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.background import Background
from flows.deployments import deployments
from flows.dvc_calls import environment
from flows.flow_runs import ended_runs, forget, living_runs
from flows.server_address import answers, host_and_port, is_healthy, is_local, page
from pipeline.paths import FLOW_RUNS, PREFECT, PREFECT_YAML
from pipeline.resources import telemetry_off
from pipeline.tracking_store import pages

PATIENCE = 300.0  # seconds until a server or worker that does not come is an error
POLL = 0.5  # seconds
LAST_WORDS = 30.0  # seconds that flows may take to end their stages and report it
SILENCE = timedelta(seconds=90)  # a worker that lives is heard of every 30 s
PREFECT_COMMAND = (sys.executable, "-m", "prefect", "--no-prompt")
ADDRESS = "PREFECT_API_URL"
UNFINISHED = ("RUNNING", "CANCELLING", "PENDING")


class StartError(RuntimeError):
    """Something does not start; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.start", description="Start what the flows need.")
    parser.add_argument("--stop", action="store_true", help="end the worker and the server of this folder")
    parser.add_argument("--no-worker", action="store_true", help="all but the worker")
    args = parser.parse_args(argv)
    server, worker = Background("server"), Background("worker")
    if args.stop:
        return stop(worker, server)
    if not PREFECT_YAML.is_file():
        print(f"{PREFECT_YAML} is missing: run this in the repository's root", file=sys.stderr)
        return 2
    telemetry_off()
    try:
        url = address()
        start_server(server, url)
        pool, begun = prepare_pool(), datetime.now(UTC)
        fresh = not args.no_worker and start_worker(worker, url, pool)
        register(url)
        if fresh:
            wait_for_worker(worker, pool, begun)
        elif not args.no_worker:
            wait_for_worker(worker, pool, begun - SILENCE, SILENCE.total_seconds())
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    print(what_next(url, server, None if args.no_worker else worker))
    return 0


def stop(worker: Background, server: Background) -> int:
    """End the worker, then its flows (they see that it is gone and end their stages), then the server they report to.

    Returns:
        The exit code: 1 where a flow is still there after LAST_WORDS seconds.
    """
    print(f"{worker.name}: {'ended' if worker.stop() else 'was not running'}", flush=True)
    end = time.monotonic() + LAST_WORDS
    while (runs := living_runs()) and time.monotonic() < end:
        time.sleep(POLL)
    for run in runs:
        print(f"flow run {run} is still there after {LAST_WORDS:g} s: `fuser -v {FLOW_RUNS / run}` names its process")
    print(f"{server.name}: {'ended' if server.stop() else 'was not running'}")
    return 1 if runs else 0


def address() -> str:
    """The address of Prefect's API: PREFECT_API_URL, else prefect.toml.

    Raises:
        StartError: there is none.
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        raise StartError(f"no address of a Prefect server: set api.url in prefect.toml, or {ADDRESS}")
    return url


def child_environment(url: str) -> dict[str, str]:
    """What server and worker get: the address, and a home inside this folder."""
    home = os.environ.get("PREFECT_HOME", str(PREFECT.resolve()))
    return environment({ADDRESS: url, "PREFECT_HOME": home})


def start_server(server: Background, url: str) -> None:
    """Start the server where none answers, and wait until it is healthy.

    Raises:
        StartError: another program has the port, a server elsewhere does not answer, or this one ends or hangs.
    """
    if is_healthy(url):
        return
    if not is_local(url):
        raise StartError(f"the Prefect server at {url} does not answer; unset {ADDRESS} to start one here")
    if not server.is_alive() and answers(url):
        raise StartError(f"another program listens at {page(url)}: end it, or set {ADDRESS}=http://127.0.0.1:4201/api")
    host, port = host_and_port(url)
    print(f"starting the Prefect server at {page(url)} (log {server.log})", flush=True)
    server.start([*PREFECT_COMMAND, "server", "start", "--host", host, "--port", str(port)], child_environment(url))
    _wait(lambda: is_healthy(url), server, f"the Prefect server at {url}")


def _wait(ready: Callable[[], bool], process: Background, what: str, patience: float = PATIENCE) -> None:
    """Wait until `ready`.

    Raises:
        StartError: the process has ended, or the patience (seconds) is over; shows the end of its log.
    """
    end = time.monotonic() + patience
    while not ready():
        if not process.is_alive():
            raise StartError(f"{what} ended while it started; {process.log} ends with:\n{process.last_lines()}")
        if time.monotonic() > end:
            raise StartError(
                f"{what} is not heard of after {patience:g} s: type the same again, or first --stop; "
                f"{process.log} ends with:\n{process.last_lines()}"
            )
        time.sleep(POLL)


def prepare_pool() -> str:
    """Make the work pool of prefect.yaml, and book flow runs that died; returns the pool's name.

    Raises:
        StartError: prefect.yaml names several pools, or the pool is another folder's.
    """
    from prefect.client.orchestration import get_client

    pools = sorted({deployment.pool for deployment in deployments()})
    if len(pools) > 1:
        raise StartError(
            f"{PREFECT_YAML} names several work pools, {', '.join(pools)}; docs/flows.md says how to use one"
        )
    with get_client(sync_client=True) as client:
        make_pool(client, pools[0], Path.cwd())
        bury_dead_runs(client)
    return pools[0]


def register(url: str) -> None:
    """Register the deployments of prefect.yaml.

    Raises:
        StartError: prefect.yaml is refused.
    """
    command = [*PREFECT_COMMAND, "deploy", "--all"]
    done = subprocess.run(command, env=child_environment(url), capture_output=True, text=True)
    if done.returncode:
        raise StartError(f"prefect deploy --all ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr}")


def worker_name() -> str:
    """The name that the worker of this folder has on its page."""
    return f"{socket.gethostname()}-{Path.cwd().name}"


def start_worker(worker: Background, url: str, pool: str) -> bool:
    """Start the worker; False where one runs already."""
    command = [*PREFECT_COMMAND, "worker", "start", "--pool", pool, "--type", "process", "--name", worker_name()]
    fresh = worker.start(command, child_environment(url))
    if fresh:
        print(f"starting the worker (log {worker.log})", flush=True)
    return fresh


def wait_for_worker(worker: Background, pool: str, since: datetime, patience: float = PATIENCE) -> None:
    """Wait until the server has heard from the worker since then: at once, of one that was there and is well.

    Raises:
        StartError: it ends or hangs, or speaks to another server.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _wait(lambda: _is_online(client, pool, worker_name(), since), worker, "the worker", patience)


def _is_online(client: Any, pool: str, name: str, since: datetime) -> bool:
    workers = client.read_workers_for_work_pool(pool)
    return any(one.name == name and one.last_heartbeat_time and one.last_heartbeat_time >= since for one in workers)


def pool_template(folder: Path) -> dict[str, Any]:
    """The process pool's job template with this folder and this Python filled in.

    With a command given, a flow starts in one process; Prefect's default starts two, one after the other.
    """
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    variables["command"]["default"] = shlex.join([sys.executable, "-m", "prefect.engine"])
    variables["working_dir"]["default"] = str(folder)
    return template


def make_pool(client: Any, pool: str, folder: Path) -> None:
    """Create the work pool, or bring it up to date.

    Raises:
        StartError: it is the pool of another folder that is still there.
    """
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    try:
        known = client.read_work_pool(pool).base_job_template
    except ObjectNotFound:
        known = None
    other = (known or {}).get("variables", {}).get("properties", {}).get("working_dir", {}).get("default")
    if other and Path(other) != folder and (Path(other) / PREFECT_YAML).is_file():
        raise StartError(
            f"the work pool {pool!r} of this server runs the flows of {other}; "
            f"use a server of your own: {ADDRESS}=http://127.0.0.1:4201/api .venv/bin/python -m flows.start"
        )
    wanted: dict[str, Any] = {"description": f"Flows of {folder}", "base_job_template": pool_template(folder)}
    if known is None:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", **wanted))
    else:  # whether it is paused, and how many flows it lets run, is for its owner
        client.update_work_pool(pool, WorkPoolUpdate(**wanted))


def bury_dead_runs(client: Any) -> None:
    """Tell the server of flow runs of this folder that died together with their worker."""
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    for run in ended_runs():
        try:
            state = client.read_flow_run(run).state
            if state is not None and state.type.value in UNFINISHED:
                client.set_flow_run_state(run, Crashed(message="its process was gone"), force=True)
                print(f"flow run {run} had died; what it had finished stays done")
        except ObjectNotFound:
            print(f"flow run {run} has ended; this server does not know it")
        forget(run)


def what_next(url: str, server: Background, worker: Background | None) -> str:
    """What is there, and the command to type."""
    here = Path(sys.executable).parent
    found = shutil.which("prefect")
    bare = found is not None and Path(found).parent == here
    shown = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    prefix = f"{ADDRESS}={url} " if os.environ.get(ADDRESS) else ""
    prefect, python = ("prefect", "python") if bare else (str(shown / "prefect"), str(shown / "python"))
    name = deployments()[0].name
    where = f"log {server.log}" if server.is_alive() else "not started by this command"
    lines = [f"Prefect   {page(url)} ({where})"]
    if worker is None:
        pool = deployments()[0].pool
        elsewhere = f"{prefix}{prefect} worker start --pool {pool}"
        return "\n".join([*lines, f"next: {prefix}{python} -m flows.serve    (or, for the pool: {elsewhere})"])
    return "\n".join(
        [
            *lines,
            f"worker    log {worker.log}",
            f"flows     {', '.join(one.name for one in deployments())}",
            f"tables    {pages()}",
            f"next: {prefix}{prefect} deployment run {name}    (and --watch to wait for its end)",
            f"end:  {python} -m flows.start --stop",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
