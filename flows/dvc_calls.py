"""Calls of DVC, and the environment that it and the stages get."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.resources import TELEMETRY_OFF

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")  # without the flag DVC gives up after 3 s
PAUSE = 2  # seconds between two tries


class DvcError(RuntimeError):
    """A call of DVC failed; the message holds what DVC said."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child process gets: this process' variables, our Python first on PATH, output line by line.

    Prefect's private variables (`PREFECT__...`: tokens of the control channel) stay here.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    return {**TELEMETRY_OFF, **own, "PATH": path, "PYTHONUNBUFFERED": "1", **(more or {})}


def ask(*arguments: str, tries: int = 1) -> str:
    """What `dvc ARGUMENTS` prints.

    Args:
        arguments: after `dvc --wait-for-lock`.
        tries: of a call that takes no lock and may meet a half-written dvc.lock.

    Raises:
        DvcError: it ended with an error.
    """
    for left in reversed(range(tries)):
        done = subprocess.run([*DVC, *arguments], env=environment(), capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        if left:
            time.sleep(PAUSE)
    raise DvcError(f"dvc {' '.join(arguments)} ended with {done.returncode}:\n{(done.stderr or done.stdout).strip()}")
