"""Where a published number comes from: dvc.lock's graph, this commit's code, this machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.code_hash import Instance, Sources, hash_text
from pipeline.paths import CODE, README, RESULTS, World

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
CHANGEABLE = ("params.yaml", "dvc.lock")
PACKAGES = (
    *("torch", "transformers", "diffusers", "tokenizers", "numpy", "scipy", "pandas", "pyarrow", "dvc", "mlflow"),
    *("prefect", "torch-fidelity", "pycocoevalcap", "nltk"),
)


class PublishError(RuntimeError):
    """Nothing can be published; the message says why and what to do."""


@dataclass(frozen=True)
class Origin:
    """Hashes of what made a file: code and params by stage instance, data by path."""

    code: dict[str, str]
    params: dict[str, str]
    data: dict[str, str]


class Lock:
    """dvc.lock as a graph."""

    def __init__(self, stages: Mapping[str, Any]) -> None:
        self.stages = stages
        self._outs = {out["path"]: (name, out) for name, body in stages.items() for out in body.get("outs", [])}

    def maker(self, path: str) -> tuple[str, Mapping[str, Any]] | None:
        """(stage instance, output) that wrote a file or the folder it lies in."""
        for place in (path, *(parent.as_posix() for parent in Path(path).parents)):
            if place in self._outs:
                return self._outs[place]
        return None

    def makers(self, path: str) -> list[str]:
        """Stage instances that wrote a path, or something inside it."""
        made = self.maker(path)
        inside = [name for out, (name, _) in self._outs.items() if Path(out).is_relative_to(path)]
        return [made[0]] if made is not None else inside

    def origin(self, path: Path, world: World) -> Origin | None:
        """All that made `path`; None where dvc.lock does not know it. Pairs count by content, not by their making."""
        todo = self.makers(path.as_posix())
        if not todo:
            return None
        found, seen = Origin({}, {}, {}), set[str]()
        while todo:
            instance = todo.pop()
            if instance in seen:
                continue
            seen.add(instance)
            found.params[instance] = params_hash(self.params(instance))
            for dep in self.stages[instance].get("deps", []):
                place = Path(dep["path"])
                if place.is_relative_to(CODE):
                    found.code[instance] = dep["md5"]
                elif place.is_relative_to(world.pairs_folder()):
                    found.data[place.as_posix()] = dep["md5"]
                else:
                    todo += self.makers(place.as_posix())
        return found

    def params(self, instance: str) -> dict[str, Any]:
        """Parameters that an instance was run with, by dotted key."""
        return dict(self.stages[instance].get("params", {}).get("params.yaml", {}))

    def data_now(self) -> dict[str, str]:
        """Path -> md5 of every dependency and output."""
        both = (item for body in self.stages.values() for item in (*body.get("deps", []), *body.get("outs", [])))
        return {item["path"]: item["md5"] for item in both if "md5" in item}


def params_hash(values: Mapping[str, Any]) -> str:
    """Hash of parameters by dotted key."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def value_at(params: Mapping[str, Any], key: str) -> Any:
    """`optim.lr` of nested params; None where there is none."""
    node: Any = params
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def instance_from_name(name: str) -> Instance:
    """The instance of a DVC name (values of a matrix hold no dash)."""
    stage, _, item = name.partition("@")
    return Instance(stage, tuple((str(n), value) for n, value in enumerate(item.split("-"))) if item else ())


def stale(origin: Origin, lock: Lock, params: Mapping[str, Any], root: Path = Path()) -> list[str]:
    """What is not this commit's any more: 'code of train_medim@medim', 'params of ...', 'data ...'; empty = all is."""
    sources, reasons = Sources(root), []
    for instance, md5 in sorted(origin.code.items()):
        try:
            text = hash_text(instance_from_name(instance), sources)
        except FileNotFoundError:
            text = ""  # the stage or a module is gone
        if hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() != md5:
            reasons.append(f"code of {instance}")
    for instance, digest in sorted(origin.params.items()):
        if instance in lock.stages:
            now = {key: value_at(params, key) for key in lock.params(instance)}
            reasons += [] if params_hash(now) == digest else [f"params of {instance}"]
    now_md5 = lock.data_now()
    return reasons + [f"data {path}" for path, md5 in sorted(origin.data.items()) if now_md5.get(path, md5) != md5]


def git(*args: str) -> str:
    """Output of a git command.

    Raises:
        PublishError: git fails; holds its words.
    """
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PublishError(f"git {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def commit_of_clean_tree() -> str:
    """The commit that the working tree is at.

    Raises:
        PublishError: something is not committed, apart from params.yaml, dvc.lock and what publishing itself writes.
    """
    entries = git("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames").split("\0")
    changed = [entry[3:] for entry in entries if entry]
    bad = [path for path in changed if path not in CHANGEABLE and not Path(path).is_relative_to(RESULTS)]
    if README.as_posix() in bad and _only_results_changed():
        bad.remove(README.as_posix())
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise PublishError(
            f"commit these first, a published number must name the code that made it: {', '.join(bad[:5])}{more}"
        )
    return git("rev-parse", "HEAD").strip()


def _only_results_changed() -> bool:
    committed = git("show", f"HEAD:{README.as_posix()}")
    return "".join(around_results(committed)) == "".join(around_results(README.read_text(encoding="utf-8")))


def around_results(text: str) -> tuple[str, str]:
    """README's text before and after the generated block, markers included.

    Raises:
        PublishError: a marker is missing.
    """
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise PublishError(f"{README} needs the lines {BEGIN} and {END} where the results belong")
    return before + found, ended + after


def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on."""
    return {"python": platform.python_version(), **dict(_versions())}


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GB, GPU and system: what a time depends on. No name that identifies the machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": _gpu(),
        "system": platform.system(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str | None:
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
