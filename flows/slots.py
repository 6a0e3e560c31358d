"""Who may run now: one job a GPU, and one process a stage.

Both are files under an exclusive `flock`. The kernel frees a lock when the last process that holds it is gone, however
it ended, so nothing can be left taken. Prefect's own concurrency limits were tried: a flow killed with SIGKILL kept its
slots through a restart of the server, and the next flow waited for ever without a message.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

DEVICES = "MEDIM_GPUS"  # ids, comma-separated, instead of those found; empty: none
FOLDER = "MEDIM_SLOTS"  # where the slots' files are, instead of a folder of this user on this machine
VISIBLE = "CUDA_VISIBLE_DEVICES"
GPU_LINE = re.compile(r"^GPU \d+: .*\(UUID: ([^)]+)\)")
MIG_LINE = re.compile(r"^\s+MIG .*\(UUID: ([^)]+)\)")

NO_GPU = "No devices were found"  # what nvidia-smi says, with an error, on a machine whose driver works
CHOOSE = f"mend the driver, or set {DEVICES}= (empty: jobs run on the CPU) or to ids of GPUs, for the worker too"


class GpuError(RuntimeError):
    """Which GPUs there are cannot be told."""


class Lock:
    """A file under an exclusive lock; `fd` may be given to a child process, which then holds it too."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def release(self) -> None:
        """Let go, once; the file is free when no child holds it either."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True)
class Slot:
    """The right to compute. `device` is for CUDA_VISIBLE_DEVICES; None on a machine without a GPU."""

    device: str | None
    lock: Lock


def try_lock(path: Path, create: bool = True, note: str | None = None) -> Lock | None:
    """The lock of a file, or None where another process holds it, or where it is not there and not to be made.

    With a note the file says who has it, see `holder`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    if note is not None:
        os.ftruncate(fd, 0)
        os.write(fd, note.encode())
    return Lock(fd)


def holder(path: Path) -> str:
    """The note of whoever locked a file last."""
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    return text or "another process"


def parse_devices(listing: str) -> list[str]:
    """UUIDs in what `nvidia-smi -L` prints. A GPU that is split (MIG) is replaced by its parts.

    UUIDs, because nvidia-smi and CUDA do not number the GPUs of a mixed machine in the same order.
    """
    found: list[tuple[str, list[str]]] = []
    for line in listing.splitlines():
        if gpu := GPU_LINE.match(line):
            found.append((gpu[1], []))
        elif (part := MIG_LINE.match(line)) and found:
            found[-1][1].append(part[1])
    return [device for gpu, parts in found for device in (parts or [gpu])]


def devices() -> list[str]:
    """Ids of the GPUs that jobs may use: MEDIM_GPUS, else CUDA_VISIBLE_DEVICES (Slurm sets it), else nvidia-smi's.

    A machine without nvidia-smi has none.

    Raises:
        GpuError: nvidia-smi is there and cannot tell, as with a driver that does not fit: jobs of days would run on the
            CPU.
    """
    for variable in (DEVICES, VISIBLE):
        text = os.environ.get(variable)
        if text is not None:
            ids = [part.strip() for part in text.split(",") if part.strip()]
            return ids[: ids.index("-1")] if "-1" in ids else ids  # CUDA stops at the first id that is none
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired as error:
        raise GpuError(f"`nvidia-smi -L` had no answer after 60 s; {CHOOSE}") from error
    said = f"{done.stdout}{done.stderr}".strip()
    if done.returncode and NO_GPU not in said:
        raise GpuError(f"`nvidia-smi -L` ended with {done.returncode} ({said}); {CHOOSE}")
    return parse_devices(done.stdout)


def slots_folder() -> Path:
    """Where slots are, the same for every checkout of this user on this machine, for they share its GPUs."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen)
    return Path(tempfile.gettempdir()) / f"medim-slots-{os.getuid()}"  # XDG_RUNTIME_DIR is gone at logout, and in cron


class Slots:
    """The slots of this machine: one a GPU; a machine without has one."""

    def __init__(self, ids: Sequence[str] | None = None, folder: Path | None = None) -> None:
        found = list(devices() if ids is None else ids)
        self.devices: list[str | None] = list(found) or [None]
        self.folder = slots_folder() if folder is None else folder

    def take(self, note: str | None = None) -> Slot | None:
        """A free slot, or None where all are taken; `note`: see `holder`."""
        for device in self.devices:
            lock = try_lock(self._file(device), note=note)
            if lock is not None:
                return Slot(device, lock)
        return None

    def holders(self) -> list[str]:
        """Who has which slot, in words, where all are taken."""
        names = ("the CPU" if device is None else f"GPU {device}" for device in self.devices)
        return [f"{name}: {holder(self._file(device))}" for name, device in zip(names, self.devices, strict=True)]

    def _file(self, device: str | None) -> Path:
        return self.folder / f"{'cpu' if device is None else quote(device, safe='')}.lock"
