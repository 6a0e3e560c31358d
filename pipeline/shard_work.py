"""One shard: one file in, one file out; the output appears whole or not at all and is never made twice.

Beside the outputs, in a folder of the caller's choice, each finished shard leaves a receipt: its key and what its
function returned. The output holds nothing of the engine, so its bytes are those of the function alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

Summary = Mapping[str, Any]  # plain values, kept as JSON
Function = Callable[..., Summary]  # (source, target, **arguments) -> summary
Make = Callable[..., Function]


@dataclass(frozen=True)
class Shard:
    """One piece of work.

    Attributes:
        source: the file that is read.
        target: the file that is written.
        key: hash of everything that the target depends on: contents read, settings, code (see `shard_key`).
        arguments: what the function gets beside both paths, such as a range of rows; plain values.
    """

    source: Path
    target: Path
    key: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names this shard's receipt; no other shard has it."""
        return hashlib.sha256(f"{self.key} {self.target.as_posix()}".encode()).hexdigest()[:24]

    def unfinished(self) -> Path:
        """Where its function writes; on the target's disk, so that publishing is one rename."""
        return self.target.with_name(f".{self.target.name}.unfinished")


@dataclass(frozen=True)
class Work:
    """What is done to every shard.

    Attributes:
        make: `module:function`, see `address`. Called once in each worker, with `settings`; what it returns is called
            with (source, target, **arguments) for each shard, writes the target and returns plain values.
        settings: plain values: paths, numbers, names.
        receipts: folder of the receipts.
        threads, seed, use_torch: how a worker is set up, see `pipeline.resources.configure`. A function must not draw
            from global generators: which shard a worker gets first is chance.
    """

    make: str
    settings: Mapping[str, Any]
    receipts: Path
    threads: int
    seed: int
    use_torch: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: its summary, or why there is none."""

    summary: Summary | None
    error: str | None = None  # the traceback
    set_up: bool = True  # False: the function could not be made, which is no shard's fault


def address(make: Make) -> str:
    """`module:function` of a function that a worker can import.

    Stages pass functions rather than text, so that the code hash of the stage (pipeline.code_hash) sees the import.

    Raises:
        ValueError: it is a lambda, lies inside another function, or stands in a script.
    """
    module, name = make.__module__, make.__qualname__
    if module == "__main__" or "<" in name:
        raise ValueError(f"a worker cannot import {module}:{name}: define it at the top of a module")
    return f"{module}:{name}"


def imported(text: str) -> Make:
    """The function at an `address`.

    Raises:
        ValueError: the text is none.
    """
    module, colon, name = text.partition(":")
    found: Any = import_module(module) if colon and name else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"{text!r} names no function: write module:function, as in medim.pairs:decode_png")
    made: Make = found
    return made


def shard_key(content: str, **identity: Any) -> str:
    """Key of a shard from a hash of what it reads and all else that its output depends on (plain values)."""
    text = json.dumps({"content": content, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def receipt(shard: Shard, receipts: Path) -> Path:
    """Where the receipt of a finished shard lies."""
    return receipts / f"{shard.name}.json"


def finished(shard: Shard, receipts: Path) -> Summary | None:
    """The summary of a shard that was made before and whose output still is what was made; None: it is to be made."""
    path = receipt(shard, receipts)
    if not path.is_file() or not shard.target.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["key"] != shard.key or kept["bytes"] != shard.target.stat().st_size:
        return None
    summary: Summary = kept["summary"]
    return summary


def make_shard(function: Function, shard: Shard, receipts: Path) -> Summary:
    """Call the function and publish what it wrote, then the receipt, each in one rename after it is on disk.

    Raises:
        FileNotFoundError: the function wrote nothing.
        Exception: whatever the function raises; the target is as it was.
    """
    unfinished = shard.unfinished()
    sweep(shard)
    unfinished.mkdir(parents=True)
    try:
        written = unfinished / shard.target.name
        summary = dict(function(shard.source, written, **shard.arguments))
        if not written.is_file():
            raise FileNotFoundError(f"{shard.source}: the shard's function returned without writing {written}")
        _to_disk(written)
        size = written.stat().st_size
        kept = {"key": shard.key, "target": shard.target.as_posix(), "bytes": size, "summary": summary}
        text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
        os.replace(written, shard.target)
        _write(receipt(shard, receipts), text)
    finally:
        sweep(shard)
    return summary


def sweep(shard: Shard) -> None:
    """Remove what a killed attempt left."""
    shutil.rmtree(shard.unfinished(), ignore_errors=True)


def attempt(function: Function, shard: Shard, receipts: Path) -> Outcome:
    """Make a shard unless it is finished: an engine may hand out one that a killed worker had finished."""
    try:
        summary = finished(shard, receipts)
        return Outcome(make_shard(function, shard, receipts) if summary is None else summary)
    except Exception:  # noqa: BLE001 - the shard is named with it, the others go on
        return Outcome(None, traceback.format_exc())


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
