"""Calls of DVC, and the environment that it and the stages get."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.supervise import TIMED_OUT, supervised
from pipeline.resources import TELEMETRY_OFF

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")  # without the flag DVC gives up after 3 s
PAUSE = 2  # seconds between two tries
QUIET = 10.0  # seconds after which a call that says nothing is spoken of
POLL = 1.0  # seconds


class DvcError(RuntimeError):
    """A call of DVC failed; the message holds what DVC said."""


class CallerGoneError(RuntimeError):
    """The process that started the flow is gone: nobody could cancel it any more."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child process gets: this process' variables, our Python first on PATH, output line by line.

    Prefect's private variables (`PREFECT__...`: tokens of the control channel) stay here.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    return {**TELEMETRY_OFF, **own, "PATH": path, "PYTHONUNBUFFERED": "1", **(more or {})}


@contextmanager
def running(command: Sequence[str], limit: float) -> Iterator[subprocess.Popen[str]]:
    """A command, for `limit` seconds at most, whose output and errors are read by the body.

    Whatever ends the body early (a flow that is cancelled, or killed) ends the command too.
    """
    with subprocess.Popen(
        supervised(command, limit), env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        except BaseException:
            process.terminate()  # and what it supervises
            raise


def ask(
    *arguments: str, tries: int = 1, limit: float = 3600.0, say: Callable[[str], None] = lambda _: None,
    alive: Callable[[], bool] = lambda: True,
) -> str:  # fmt: skip
    """What `dvc ARGUMENTS` prints.

    Args:
        arguments: after `dvc --wait-for-lock`, which waits for the repository's lock without a word or an end.
        tries: of a call that takes no lock and may meet a half-written dvc.lock.
        limit: seconds until a call that does not end is ended.
        say: is told once that it waits.
        alive: asked every second; once it says no, the call is ended.

    Raises:
        CallerGoneError: `alive` said no.
        DvcError: it ended with an error, or was ended after `limit`.
    """
    for left in reversed(range(tries)):
        code, out, err = _call(arguments, limit, say, alive)
        if code == 0:
            return out
        if left:
            time.sleep(PAUSE)
    raise DvcError(f"dvc {' '.join(arguments)} ended with {code}:\n{(err or out).strip()}")


def _call(
    arguments: Sequence[str], limit: float, say: Callable[[str], None], alive: Callable[[], bool]
) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    with running([*DVC, *arguments], limit) as process:
        return _answer(process, f"dvc {' '.join(arguments)}", say, alive)


def _answer(
    process: subprocess.Popen[str], name: str, say: Callable[[str], None], alive: Callable[[], bool]
) -> tuple[int, str, str]:
    begun, said = time.monotonic(), False
    while True:
        try:
            out, err = process.communicate(timeout=POLL)
        except subprocess.TimeoutExpired:
            passed = time.monotonic() - begun
        else:
            if process.returncode == TIMED_OUT:
                raise DvcError(
                    f"{name} had no answer after {time.monotonic() - begun:.0f} s; who holds the repository's lock? "
                    f"`fuser -v .dvc/tmp/lock` tells"
                )
            return process.returncode, out, err
        if not alive():
            raise CallerGoneError(f"the worker that started this flow is gone, while {name} had no answer yet")
        if passed > QUIET and not said:
            said = True
            say(f"waiting for {name}: another DVC may have the repository's lock (`fuser -v .dvc/tmp/lock`)")
