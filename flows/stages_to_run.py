"""What is stale: DVC is asked once, and everything that follows from a stale stage runs too."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection

from flows.dvc_calls import CallerGoneError, DvcError, ask
from flows.graph import Graph

BUSY = re.compile(r"is busy, it is being blocked by:\s*(?P<blockers>(?:\s*\(PID \d+\):[^\n]*\n?)*)")
PAUSE = 3.0  # seconds before a busy DVC is asked again the first time
LONGEST_PAUSE = 60.0  # seconds, at most
POLL = 1.0  # seconds
PATIENCE = 120.0  # seconds for which a busy DVC is asked again


def parse_status(text: str) -> set[str]:
    """Names of the stale instances in what `dvc status --json` prints.

    Raises:
        DvcError: that is no JSON object.
    """
    try:
        status = json.loads(text)
    except json.JSONDecodeError as error:
        raise DvcError(f"dvc status --json printed no JSON ({error}): {text[:200]!r}") from error
    if not isinstance(status, dict):
        raise DvcError(f"dvc status --json printed no object: {text[:200]!r}")
    return set(status)


def busy_with(message: str) -> str | None:
    """Who holds the paths that DVC wants (`(PID 7): dvc repro -s x`), or None where it complains of something else."""
    found = BUSY.search(message)
    return None if found is None else ", ".join(line.strip() for line in found["blockers"].splitlines() if line.strip())


def longer(pause: float) -> float:
    """Seconds before a busy DVC is asked once more: PAUSE after none, else twice the last, up to LONGEST_PAUSE."""
    return min(LONGEST_PAUSE, max(PAUSE, 2 * pause))


def stale_stages(
    limit: float, say: Callable[[str], None], alive: Callable[[], bool] = lambda: True, patience: float = PATIENCE
) -> set[str] | None:
    """Ask `dvc status`, as often as another process of DVC keeps it busy: it has no wait of its own.

    Beside a flow that always has some stage running DVC is always busy. After `patience` the answer is None: nothing is
    known, and each stage is to be asked for when its turn comes (`dvc repro` skips what is up to date in a second).

    Args:
        limit: seconds until a DVC that says nothing is an error.
        say: is told when and for whom this waits.
        alive: see `ask`.
        patience: seconds for which a busy DVC is asked again.

    Raises:
        CallerGoneError: see `ask`.
        DvcError: DVC cannot tell.
    """
    end, said, pause = time.monotonic() + patience, "", 0.0
    while True:
        try:
            return parse_status(ask("status", "--json", limit=limit, say=say, alive=alive))
        except DvcError as error:
            blockers = busy_with(str(error))
            if blockers is None:
                raise
            if time.monotonic() > end:
                say(f"DVC stays busy with {blockers}: every stage is asked for when its turn comes")
                return None
            if blockers != said:
                say(f"waiting: DVC is busy with {blockers}")
                said = blockers
        pause = longer(pause)
        _sleep(min(pause, max(POLL, end - time.monotonic())), alive)


def _sleep(seconds: float, alive: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not alive():
            raise CallerGoneError("the worker that started this flow is gone, while DVC was busy")
        time.sleep(min(left, POLL))


def stages_to_run(graph: Graph, stale: Collection[str] | None, targets: Collection[str]) -> list[str]:
    """The stale stages among the targets and what they need, and those that follow from these, in order.

    Of `stale` None (not known) all that the targets need.

    A follower whose inputs turn out the same costs a second: DVC skips it.
    """
    needed = graph.needed(targets)
    if stale is None:
        return graph.ordered(needed)
    return graph.ordered(graph.followers(needed & set(stale)) & needed)
