"""`python -m flows.supervise [--seconds N] [--parent PID] -- COMMAND ...`: a command that cannot outlive its caller.

The command is the leader of a process group of its own. When the caller ends (cancelled, crashed, killed with SIGKILL),
when SIGTERM, SIGINT or SIGHUP comes, or when the time is over, all of the group gets SIGTERM and, GRACE seconds later,
SIGKILL. On Linux this process also inherits every orphan of the command's tree, so one that left the group is found
and ended too. The exit code is the command's (128 + signal where one ended it), 143 after a stop, 124 after the time.

Deviation from `timeout` and systemd: the caller is watched by asking for the parent's id five times a second. Linux'
parent-death signal is tied to the thread that started the child, and threads of a flow end before their process.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pipeline.resources import die_with_parent

GRACE = 5.0  # seconds between SIGTERM and SIGKILL: a stage's checkpoints are on disk already
LAST = 2.0  # seconds that SIGKILL may take
POLL = 0.2  # seconds
STOPPED, TIMED_OUT = 143, 124
PR_SET_CHILD_SUBREAPER = 36


def supervised(command: Sequence[str], seconds: float) -> list[str]:
    """The command line that runs `command` under this file, as a child of this process, for `seconds` at most."""
    own = ["--seconds", f"{seconds:g}", "--parent", str(os.getpid()), "--"]
    return [sys.executable, "-m", "flows.supervise", *own, *command]


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.supervise", description="Run a command and end all of it.")
    parser.add_argument("--seconds", type=float, help="end the command after this time")
    parser.add_argument("--parent", type=int, help="id of the caller, who may be gone before this process looks")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args(argv)
    parent, stops = args.parent or os.getppid(), list[int]()

    def stop(number: int, _frame: FrameType | None) -> None:
        stops.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    _adopt_orphans()
    return _watch(args.command, args.seconds, parent, stops)


def _watch(command: list[str], seconds: float | None, parent: int, stops: list[int]) -> int:
    if os.getppid() != parent:
        return STOPPED
    own = os.getpid()
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: die_with_parent(own))
    end = None if seconds is None else time.monotonic() + seconds
    code: int | None = None
    try:
        while code is None:
            if stops or os.getppid() != parent:
                code = STOPPED
            elif end is not None and time.monotonic() > end:
                code = TIMED_OUT
            elif _ends_within(child, POLL):
                code = child.returncode if child.returncode >= 0 else 128 - child.returncode
            else:
                _reap(child)
    finally:
        _end_all(child)
    if code == TIMED_OUT and seconds is not None:
        print(f"supervise: {seconds:g} s are over, {command[0]} was ended", file=sys.stderr, flush=True)
    return code


def _ends_within(child: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _adopt_orphans() -> None:
    """Become the parent of every orphan below this process (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> list[int]:
    """Ids of this process' children, adopted ones too; empty where the system does not tell."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(text) for text in path.read_text().split()] if path.is_file() else []


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Take leave of dead orphans; the command itself is Popen's."""
    for pid in _children():
        if pid != child.pid:
            os.waitpid(pid, os.WNOHANG)


def _end_all(child: subprocess.Popen[bytes]) -> None:
    """End the group and the adopted orphans: SIGTERM, then SIGKILL."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, LAST)):
        end, told = time.monotonic() + patience, set[int]()
        while True:
            child.poll()
            _reap(child)
            strays = [pid for pid in _children() if pid != child.pid]
            if not strays and not _signal_group(child.pid, 0):
                return
            if time.monotonic() > end:
                break
            if child.pid not in told:
                _signal_group(child.pid, number)
            for pid in {*strays} - told:
                _signal(pid, number)
            told |= {child.pid, *strays}
            time.sleep(POLL / 4)


def _signal_group(group: int, number: int) -> bool:
    """Whether there is such a group; it got the signal (0: none)."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of dead processes
        return False
    return True


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
