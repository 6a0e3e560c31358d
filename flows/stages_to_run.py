"""What is stale: DVC is asked once, and everything that follows from a stale stage runs too."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection

from flows.dvc_calls import DvcError, ask
from flows.graph import Graph

BUSY = re.compile(r"is busy, it is being blocked by:\s*(?P<blockers>(?:\s*\(PID \d+\):[^\n]*\n?)*)")
PAUSE = 3.0  # seconds before a busy DVC is asked again the first time
LONGEST_PAUSE = 60.0  # seconds, at most


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


def stale_stages(limit: float, say: Callable[[str], None], alive: Callable[[], bool] = lambda: True) -> set[str]:
    """Ask `dvc status`, as often as another process of DVC keeps it busy: it has no wait of its own.

    Args:
        limit: seconds until a busy DVC is an error.
        say: is told when and for whom this waits.
        alive: see `ask`.

    Raises:
        DvcError: DVC cannot tell, or was busy for all that time.
    """
    end, said, pause = time.monotonic() + limit, "", 0.0
    while True:
        try:
            return parse_status(ask("status", "--json", limit=limit, say=say, alive=alive))
        except DvcError as error:
            blockers = busy_with(str(error))
            if blockers is None or time.monotonic() > end:
                raise
            if blockers != said:
                say(f"waiting: DVC is busy with {blockers}")
                said = blockers
        pause = longer(pause)
        time.sleep(pause)


def stages_to_run(graph: Graph, stale: Collection[str], targets: Collection[str]) -> list[str]:
    """The stale stages among the targets and what they need, and those that follow from these, in order.

    A follower whose inputs turn out the same costs a second: DVC skips it.
    """
    needed = graph.needed(targets)
    return graph.ordered(graph.followers(needed & set(stale)) & needed)
