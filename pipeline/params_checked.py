"""Remembers which params.yaml was found right, so that one run of the graph checks all sections once and not per stage.

The key holds the bytes of params.yaml and dvc.yaml and of all code that says what a section may hold.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from pipeline.params_file import PARAMS
from pipeline.paths import DVC_YAML, WORK

CHECKED = WORK / "params_checked"
CODE = Path(__file__).parents[1]
PACKAGES = ("medim", "pipeline", "stages")


def params_key() -> str | None:
    """Hash of what the check reads; None where a file is missing (the check says which)."""
    if not PARAMS.is_file() or not DVC_YAML.is_file():
        return None
    total = hashlib.sha256(sys.version.encode())
    code = [path for package in PACKAGES for path in sorted((CODE / package).rglob("*.py"))]
    for path in (PARAMS, DVC_YAML, *code):
        total.update(f"\n{path.name}\n".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def was_checked(key: str | None) -> bool:
    """Whether the last params.yaml that was found right has this key."""
    return key is not None and CHECKED.is_file() and CHECKED.read_text(encoding="utf-8") == key


def remember_checked(key: str | None) -> None:
    """All sections were right."""
    if key is not None:
        CHECKED.parent.mkdir(parents=True, exist_ok=True)
        partial = CHECKED.with_name(f"{CHECKED.name}.{os.getpid()}.partial")
        partial.write_text(key, encoding="utf-8")
        partial.replace(CHECKED)
