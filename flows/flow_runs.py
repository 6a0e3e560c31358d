"""Which flow runs are alive on this machine: the process of each holds the lock of a file with its id.

A worker reports a flow that died; where both died at once (power, SIGKILL), Prefect says Running for ever. The file
tells the next `python -m flows.start`. It stays, and its lock is held, until the process is gone: only then has it told
Prefect how it ended, or will never do so.
"""

from __future__ import annotations

import os
from pathlib import Path

from flows.slots import Lock, try_lock
from pipeline.paths import FLOW_RUNS

_HELD: list[Lock] = []  # until this process ends


def say_alive(run: str | None, folder: Path = FLOW_RUNS) -> None:
    """Say that this process is the flow run `run`; None (called outside Prefect's API): nothing.

    The file is locked before it stands where others look: one that is there without a lock is a dead run's.
    """
    if run is None:
        return
    new = folder.with_name(f"{folder.name}.new") / f"{run}.{os.getpid()}"
    lock = try_lock(new)
    if lock is not None:
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(new, folder / run)
        _HELD.append(lock)


def ended_runs(folder: Path = FLOW_RUNS) -> list[str]:
    """Ids of flow runs whose process is gone, however it ended."""
    found = []
    for path in sorted(folder.glob("*")):
        lock = try_lock(path, create=False)
        if lock is not None:
            found.append(path.name)
            lock.release()
    return found


def living_runs(folder: Path = FLOW_RUNS) -> list[str]:
    """Ids of flow runs whose process is there."""
    ended = set(ended_runs(folder))
    return [path.name for path in sorted(folder.glob("*")) if path.name not in ended]


def forget(run: str, folder: Path = FLOW_RUNS) -> None:
    """Remove what tells of the flow run: the server knows its end."""
    (folder / run).unlink(missing_ok=True)
