"""The pages of MLflow that show a world, as `python -m pipeline.tracking sync` prints them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from flows.dvc_calls import running
from flows.supervise import TIMED_OUT
from pipeline.paths import World

LINE = re.compile(r"^(?P<world>[\w-]+)/(?P<page>\S+)\s+(?:recorded|unchanged)\s+(?P<address>\S+)$", re.MULTILINE)
TIME = 1800  # seconds


class SyncError(RuntimeError):
    """MLflow could not be brought up to date; the message holds what was said."""


@dataclass(frozen=True)
class Link:
    """One page: a table (`table1`), the trainings, the figures."""

    page: str
    address: str


def parse_links(text: str) -> list[Link]:
    """The pages in what `pipeline.tracking.print_links` prints, in its order."""
    return [Link(found["page"], found["address"]) for found in LINE.finditer(text)]


def sync(world: World) -> list[Link]:
    """Have MLflow show the world's files, in a process of its own: MLflow takes seconds to import.

    Raises:
        SyncError: it did not work out.
    """
    command = [sys.executable, "-m", "pipeline.tracking", "sync", "--world", world.name]
    with running(command, TIME) as process:
        out, err = process.communicate()
    if process.returncode == TIMED_OUT:
        raise SyncError(f"{' '.join(command[1:])} took more than {TIME} s")
    if process.returncode:
        raise SyncError(f"{' '.join(command[1:])} ended with {process.returncode}:\n{err.strip()[-2000:]}")
    return parse_links(out)
