"""Curves and costs of finished stages, and how they are found again.

Outputs come back from DVC's cache when parameters are changed and changed back; curves and costs hold clock times and
are no outputs, so they are kept here: runs/<world>/finished/<instance>/<key>/ has those of each finished run with a
fingerprint of what it wrote. `bring_back` puts those of the outputs in place at logs/ and costs/.

While a stage runs, logs/<instance>.jsonl is its own; logs/<instance>.key names its work folder. When another attempt
begins before it has finished, its curves wait in its work folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.paths import WORK, World

OWNER, CURVES = "owner.json", "curves.jsonl"  # in a work folder
COSTS, OUTPUTS = "costs.json", "outputs.json"  # beside CURVES, of a finished run
KEPT = 20  # finished runs a stage instance
PIECE = 1 << 20  # bytes of a file's beginning and end that the fingerprint reads


def fingerprint(path: Path) -> str | None:
    """Recognises what a stage wrote, at any size: names, sizes, and the first and last MiB of each file.

    None where nothing is.
    """
    if not path.exists():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.relative_to(path).as_posix()} {size}\n".encode())
        with file.open("rb") as bytes_:
            total.update(bytes_.read(PIECE))
            bytes_.seek(max(PIECE, size - PIECE))
            total.update(bytes_.read())
    return total.hexdigest()


def _work_folders(instance: str) -> Path:
    return WORK / instance.partition("@")[0]


def lock_file(world: World, instance: str) -> Path:
    """What a running instance holds a lock on."""
    return _work_folders(instance) / f"{world.name}.{instance}.lock"


def _is_running(world: World, instance: str) -> bool:
    path = lock_file(world, instance)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _key_file(world: World, instance: str) -> Path:
    return world.logs(instance).with_suffix(".key")


def take_log(world: World, instance: str, work: Path) -> None:
    """Make logs/<instance>.jsonl the curves of the attempt in `work`: its own where it was begun (OWNER), else none."""
    key, log = _key_file(world, instance), world.logs(instance)
    if (work / OWNER).is_file() and key.is_file() and key.read_text(encoding="utf-8") == work.name:
        return
    _put_aside(world, instance)
    log.parent.mkdir(parents=True, exist_ok=True)
    if (work / CURVES).is_file():
        os.replace(work / CURVES, log)
    key.write_text(work.name, encoding="utf-8")


def _put_aside(world: World, instance: str) -> None:
    """The curves in logs/ go to the unfinished attempt that wrote them; those of a finished run are kept elsewhere."""
    key, log = _key_file(world, instance), world.logs(instance)
    owner = _work_folders(instance) / key.read_text(encoding="utf-8") if key.is_file() else None
    if owner is not None and (owner / OWNER).is_file() and log.is_file():
        os.replace(log, owner / CURVES)
    log.unlink(missing_ok=True)
    key.unlink(missing_ok=True)


def keep(world: World, instance: str, work: Path, outputs: Sequence[Path]) -> None:
    """Keep curves and costs of a run that has just finished; the oldest beyond KEPT go."""
    folder = world.finished(instance) / work.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(world.costs(instance), folder / COSTS)
    if world.logs(instance).is_file():
        shutil.copyfile(world.logs(instance), folder / CURVES)
    inside = [path for path in outputs if path.is_relative_to(world.root)]
    written = {path.relative_to(world.root).as_posix(): fingerprint(path) for path in inside}
    (folder / OUTPUTS).write_text(json.dumps(written, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for old in _records(world.finished(instance))[KEPT:]:
        shutil.rmtree(old)


def _records(folder: Path) -> list[Path]:
    """Complete records, the newest first."""
    found = [path.parent for path in folder.glob(f"*/{OUTPUTS}")]
    return sorted(found, key=lambda path: (path / OUTPUTS).stat().st_mtime_ns, reverse=True)


def bring_back(world: World) -> list[str]:
    """Put curves and costs of the outputs in place at logs/ and costs/; the names of instances that were changed.

    An instance that is running, or whose outputs no kept run wrote, stays as it is.
    """
    changed = []
    for folder in sorted((world.root / "finished").glob("*")):
        instance = folder.name
        found = next((path for path in _records(folder) if _in_place(world, path)), None)
        costs = world.costs(instance)
        if found is None or _is_running(world, instance):
            continue
        if costs.is_file() and costs.read_bytes() == (found / COSTS).read_bytes():
            continue
        _put_aside(world, instance)
        costs.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found / COSTS, costs)
        if (found / CURVES).is_file():
            world.logs(instance).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / CURVES, world.logs(instance))
        changed.append(instance)
    return changed


def _in_place(world: World, record: Path) -> bool:
    written = json.loads((record / OUTPUTS).read_text(encoding="utf-8"))
    return bool(written) and all(fingerprint(world.root / name) == value for name, value in written.items())
