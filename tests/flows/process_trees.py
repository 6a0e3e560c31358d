"""Waits for conditions, and tells which processes live."""

import os
import time
from pathlib import Path


def lives(pid):
    """Whether a process runs; one that is dead and not yet taken leave of does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if not Path("/proc/self/stat").is_file():  # macOS: no way to tell a zombie
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone since the line above
        return False


def wait_for(condition, seconds, what):
    """Wait until `condition()` is true; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


def pids(folder, number, seconds=20):
    """Process ids in the `number` files of a folder, once they are all written."""

    def read():
        texts = [path.read_text() for path in folder.glob("*") if path.read_text()]
        return [int(text) for text in texts] if len(texts) == number else None

    return wait_for(read, seconds, f"{number} files in {folder}: {list(folder.glob('*'))}")


def wait_until_gone(processes, seconds):
    """Wait until none of the processes lives."""
    wait_for(lambda: not any(map(lives, processes)), seconds, f"end of {processes}")
