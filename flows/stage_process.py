"""One attempt at one stage: `dvc repro --single-item STAGE` as a supervised process, its lines, and how it failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import IO

from flows.dvc_calls import DVC, environment
from flows.slots import VISIBLE, Lock, Slot
from flows.stages_to_run import busy_with
from flows.supervise import STOPPED, TIMED_OUT, supervised

TAIL = 20  # last lines that a failure shows
PROGRESS = 60.0  # seconds between two states of a progress bar in the log
EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
# "Try again" of sysexits.h; what the kernel does on a machine without memory, alone and through a shell.
TEMPORARY = (os.EX_TEMPFAIL, -signal.SIGKILL, 128 + signal.SIGKILL)
TRANSIENT = re.compile(
    r"CUDA out of memory|CUDA error: (?:out of memory|unspecified launch failure|all CUDA-capable devices are busy|"
    r"uncorrectable ECC|CUDA-capable device\(s\) is/are busy)|database is locked|Stale file handle|"
    r"Connection (?:reset by peer|refused|aborted)|(?:connection|connect|read|request)\b.{0,200}\btimed out|"
    r"failed with timeout exception|Remote end closed connection|Network is unreachable|No route to host|"
    r"Temporary failure in name resolution|(?:status|error) code:? 50[234]|\b50[234] (?:Server Error|Bad Gateway|"
    r"Service Unavailable|Gateway Time-?out)|server closed the connection unexpectedly|"
    r"the database system is (?:starting up|shutting down|in recovery mode)|"
    r"Resource temporarily unavailable|Cannot allocate memory",
    re.IGNORECASE,
)


class Ending(Enum):
    """How an attempt failed, and so what comes next."""

    TRANSIENT = "transient"  # may pass next time: retried
    BUSY = "busy"  # another process of DVC has the files: tried again until the time is over
    TIMED_OUT = "timed out"
    STOPPED = "stopped"
    BUG = "failed"  # would fail again


class StageFailed(RuntimeError):
    """A stage ended with an error; the message holds its last lines."""

    def __init__(self, stage: str, code: int, tail: Sequence[str]) -> None:
        super().__init__(f"{stage} ended with {code}; its last lines:\n" + "\n".join(tail))
        self.stage, self.ending = stage, classify(code, tail)


def classify(code: int, tail: Sequence[str]) -> Ending:
    """The ending that an exit code of `supervise` and DVC's last lines speak of."""
    text = "\n".join(tail)
    if code in (STOPPED, -signal.SIGTERM):
        return Ending.STOPPED
    if code == TIMED_OUT:
        return Ending.TIMED_OUT
    if busy_with(text) is not None:
        return Ending.BUSY
    exited = EXITED.findall(text)
    if (exited and int(exited[-1]) in TEMPORARY) or code in TEMPORARY or TRANSIENT.search(text):
        return Ending.TRANSIENT
    return Ending.BUG


class StageProcess:
    """One attempt. `stop` may be called from another thread, before, while and after it runs."""

    def __init__(self, stage: str, lock: Lock, slot: Slot | None, seconds: float) -> None:
        self.stage, self.lock, self.slot, self.seconds = stage, lock, slot, seconds
        self.failure: BaseException | None = None
        self.finished = False
        self.begun = 0.0  # time.monotonic() of its start, set by who starts it
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._guard = threading.Lock()

    def command(self) -> list[str]:
        """What is run."""
        return [*DVC, "repro", "--single-item", self.stage]

    def run(self, say: Callable[[str], None]) -> None:
        """Run to the end, telling every line; locks are released at the end.

        Raises:
            StageFailed: it ended with an error, or was stopped. Kept in `failure` too.
        """
        try:
            self._run(say)
            self.finished = True
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.stop()
            self.release()

    def _run(self, say: Callable[[str], None]) -> None:
        with self._guard:
            if self._stopped:
                raise StageFailed(self.stage, STOPPED, ["stopped before it began"])
            self._process = process = self._start()
        lines = StageLines(say)
        assert process.stdout is not None
        with process.stdout as output:
            lines.read(output)
        code = process.wait()
        if code:
            raise StageFailed(self.stage, code, lines.tail)

    def _start(self) -> subprocess.Popen[bytes]:
        held = [self.lock.fd, *([self.slot.lock.fd] if self.slot is not None else [])]
        # a slot without a GPU, as the user chose (MEDIM_GPUS="") or the machine has it, is one without a GPU
        device = {} if self.slot is None else {VISIBLE: self.slot.device or ""}
        return subprocess.Popen(
            supervised(self.command(), self.seconds), env=environment(device), pass_fds=held,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def stop(self) -> None:
        """Have the stage and all its processes ended; returns at once."""
        with self._guard:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def release(self) -> None:
        """Let go of lock and slot; what a process that is being ended still holds is free when it is gone."""
        self.lock.release()
        if self.slot is not None:
            self.slot.lock.release()


class StageLines:
    """Cuts a stage's output into lines. Of a progress bar, which rewrites its line, one state a minute is told."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.tail: list[str] = []
        self._rest = b""
        self._bar_told = time.monotonic()

    def read(self, output: IO[bytes]) -> None:
        """Read to the end."""
        while piece := os.read(output.fileno(), 65536):
            self.add(piece)
        self.end()

    def end(self) -> None:
        """The last line may have no end of its own."""
        self._tell(self._rest)
        self._rest = b""

    def add(self, piece: bytes) -> None:
        """Take what was read."""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        for line in whole:
            self._tell(line)
        if b"\r" in self._rest:
            bar, self._rest = self._rest.rsplit(b"\r", 1)
            if time.monotonic() - self._bar_told > PROGRESS:
                self._bar_told = time.monotonic()
                self._tell(bar)

    def _tell(self, line: bytes) -> None:
        text = line.rstrip(b"\r ").split(b"\r")[-1].decode("utf-8", "replace").rstrip()
        if text:
            self.tail = [*self.tail[1 - TAIL :], text]
            self.say(text)
