"""What a finished `dvc repro` was, kept as runs/<world>/repros/<key>.json, from which MLflow's run `pipeline` is made.

The last stage of the graph writes it. The key is a hash of dvc.lock, as far as it is about the graph of params.yaml,
and of the git commit: the same state leaves one file however often it is recorded. dvc.lock's entry of the recording
stage is left out, because DVC writes it when that stage has ended. Machine and times are those of the first recording.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.code_hash import instances
from pipeline.params_file import PARAMS, read_yaml
from pipeline.paths import CODE, DVC_LOCK, DVC_YAML, RUNS, World
from pipeline.publish_provenance import CHANGEABLE, Lock, PublishError, git, machine, value_at, versions
from pipeline.stage import content_hash
from pipeline.stage_records import bring_back
from pipeline.tracking_store import digest, slug

DIGEST = 32  # letters of a hash; MLflow takes 36
RESULTS_TABLE = "mission"


@dataclass(frozen=True)
class Served:
    """A model that MLflow's registry offers."""

    name: str  # in the registry
    opens: str  # module:function, see served_model.py
    models: tuple[str, ...]  # folders under models/ that the function gets
    section: str  # of params.yaml, whose values it gets


def record_repro(world: World, last: str, served: Served, params: Path = PARAMS) -> Path | None:
    """Write the record; the file, or None where dvc.lock does not hold the whole graph as params.yaml has it.

    Args:
        world: that of params.yaml.
        last: the recording stage instance.
        served: what is registered of this repro, where its folders are there.
        params: the parameter file.
    """
    values = read_yaml(params)
    names = [one.name for one in instances(read_yaml(DVC_YAML), values) if one.name != last]
    lock = Lock(read_yaml(DVC_LOCK)["stages"] if DVC_LOCK.is_file() else {})
    unfinished = [name for name in names if not _is_of_now(lock, name, values, world)]
    if unfinished:
        more = f" and {len(unfinished) - 3} more" if len(unfinished) > 3 else ""
        print(f"no run `pipeline` in MLflow: {DVC_LOCK} is not of now for {', '.join(unfinished[:3])}{more}")
        return None
    stages = json.dumps({name: lock.stages[name] for name in names}, sort_keys=True)
    locked, commit = digest(stages.encode()), _commit()
    path = world.repros() / f"{digest(locked.encode(), str(commit).encode())}.json"
    if path.is_file():
        os.utime(path)
        return path
    facts = _facts(world, [*names, last], values, served)
    _write(path, {"lock": locked, "commit": commit, "dirty": _dirty(), "time": round(time.time(), 3), **facts})
    return path


def repros(world: World) -> list[Path]:
    """Records of a world, the one that was recorded last at the end."""
    return sorted(world.repros().glob("*.json"), key=lambda path: path.stat().st_mtime_ns)


def _is_of_now(lock: Lock, name: str, values: Mapping[str, Any], world: World) -> bool:
    """Whether dvc.lock holds an instance, run with these parameters, this code and in this world, on what it holds."""
    if name not in lock.stages:
        return False
    outs = [Path(out["path"]) for out in lock.stages[name].get("outs", [])]
    if any(out.is_relative_to(RUNS) and not out.is_relative_to(world.root) for out in outs):
        return False
    if not all(_is_dep_of_now(lock, dep) for dep in lock.stages[name].get("deps", [])):
        return False
    return all(value_at(values, key) == value for key, value in lock.params(name).items())


def _is_dep_of_now(lock: Lock, dep: Mapping[str, Any]) -> bool:
    """Whether an instance read the code's hash that is there now, and of an output of another one what it last was."""
    path = Path(dep["path"])
    if path.is_relative_to(CODE):
        return path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == dep["md5"]
    made = lock.maker(dep["path"])
    return made is None or made[1]["path"] != dep["path"] or made[1].get("md5") == dep.get("md5")


def _commit() -> str | None:
    try:
        return git("rev-parse", "HEAD").strip()
    except PublishError:  # no repository
        return None


def _dirty() -> bool | None:
    """Whether a tracked file is not as committed, params.yaml and dvc.lock apart; None outside git."""
    try:
        entries = git("status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames").split("\0")
    except PublishError:
        return None
    return any(entry[3:] not in CHANGEABLE for entry in entries if entry)


def _facts(world: World, names: Sequence[str], values: Mapping[str, Any], served: Served) -> dict[str, Any]:
    bring_back(world)
    costs = {name: json.loads(world.costs(name).read_text("utf-8")) for name in names if world.costs(name).is_file()}
    folders = {name: world.model(name) for name in served.models}
    return {
        "world": world.name,
        "params": values,
        "machine": machine() | {"gpus": _gpus()},
        "versions": versions(),
        "minutes": {name: round(cost["seconds"] / 60, 3) for name, cost in costs.items()},
        "results": dict(_results(world)),
        "data": list(_data(world)),
        "models": {name: content_hash(folder)[:DIGEST] for name, folder in folders.items() if folder.is_dir()},
        "served": asdict(served),
    }


def _results(world: World) -> Iterator[tuple[str, float]]:
    """(key, value) of what the table of promises says of systems that are not trivial."""
    path = world.table(RESULTS_TABLE)
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else ():
        if cell["value"] is not None and not cell["row"].startswith("trivial: "):
            yield slug(f"{cell['row']}/{cell['column']}"), float(cell["value"])


def _data(world: World) -> Iterator[dict[str, Any]]:
    """Name, split, path, hash, rows and bytes of every file of pairs; only its hash reads it whole."""
    from pyarrow import parquet

    for path in sorted(world.pairs_folder().glob("*/*.parquet")):
        size = {"rows": parquet.read_metadata(path).num_rows, "bytes": path.stat().st_size}
        facts = {"name": path.parent.name, "split": path.stem, "path": path.as_posix()}
        yield facts | {"digest": content_hash(path)[:DIGEST], "profile": size}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
