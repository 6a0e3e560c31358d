"""Which flow runs are alive on this machine: each holds the lock of a file with its id.

A worker reports a flow that died; where both died at once (power, SIGKILL), Prefect says Running for ever. The file
tells the next `python -m flows.start`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.slots import try_lock
from pipeline.paths import FLOW_RUNS


@contextmanager
def alive(run: str | None, folder: Path = FLOW_RUNS) -> Iterator[None]:
    """Say that the flow run `run` is alive while the body runs; None (called outside Prefect's API): nothing."""
    if run is None:
        yield
        return
    path = folder / run
    lock = try_lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if lock is not None:
            lock.release()


def dead_runs(folder: Path = FLOW_RUNS) -> list[str]:
    """Ids of flow runs that ended without saying so; their files are removed."""
    found = []
    for path in sorted(folder.glob("*")):
        lock = try_lock(path, create=False)  # a run that ends meanwhile takes its file with it
        if lock is not None:
            found.append(path.name)
            path.unlink(missing_ok=True)
            lock.release()
    return found
