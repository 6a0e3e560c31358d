"""The deployments in prefect.yaml, for what has to know them before Prefect is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.params_file import read_yaml
from pipeline.paths import PREFECT_YAML


@dataclass(frozen=True)
class Deployment:
    """One entry."""

    name: str  # of the flow too
    entrypoint: str  # flows/<file>.py:<function>
    description: str
    tags: tuple[str, ...]
    parameters: Mapping[str, Any]
    pool: str


def deployments(path: Path = PREFECT_YAML) -> list[Deployment]:
    """The entries, in the file's order."""
    return [
        Deployment(
            entry["name"], entry["entrypoint"], entry["description"], tuple(entry["tags"]), entry["parameters"],
            entry["work_pool"]["name"],
        )
        for entry in read_yaml(path)["deployments"]
    ]  # fmt: skip
