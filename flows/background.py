"""Processes that go on after the command that started them: each with a log, and a lock that says that it lives."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.slots import try_lock
from pipeline.paths import PREFECT

PATIENCE = 15.0  # seconds between SIGTERM and SIGKILL
POLL = 0.2  # seconds
LOOK = 0.5  # seconds
SHOWN = 15  # last lines of a log that an error shows


class Background:
    """One of them: `.prefect/<name>.log`, and `.prefect/<name>.lock` with its process id."""

    def __init__(self, name: str, folder: Path = PREFECT) -> None:
        self.name, self.log, self._lock = name, folder / f"{name}.log", folder / f"{name}.lock"

    def is_alive(self) -> bool:
        """Whether the process, or a child that has its lock, is there."""
        if not self._lock.is_file():
            return False
        lock = try_lock(self._lock)
        if lock is None:
            return True
        lock.release()
        return False

    def pid(self) -> int:
        """Its process id, which is that of its session too."""
        return int(self._lock.read_text())

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Start it in a session of its own; False where it is alive already."""
        end = time.monotonic() + LOOK
        while (lock := try_lock(self._lock)) is None:  # who only looks whether it is alive has the lock for a moment
            if time.monotonic() > end:
                return False
            time.sleep(LOOK / 10)
        try:
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    command, env=dict(environment), pass_fds=[lock.fd], start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self._lock.write_text(str(process.pid))
            process.returncode = 0  # it is not ours to wait for: no warning that it still runs
        finally:
            lock.release()
        return True

    def stop(self) -> bool:
        """End it and what it started; False where it is not alive."""
        if not self.is_alive():
            return False
        for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, PATIENCE)):
            try:
                os.killpg(self.pid(), number)
            except ProcessLookupError:
                break
            end = time.monotonic() + patience
            while self.is_alive() and time.monotonic() < end:
                time.sleep(POLL)
            if not self.is_alive():
                break
        return True

    def last_lines(self) -> str:
        """The end of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join(text.splitlines()[-SHOWN:])
