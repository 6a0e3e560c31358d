"""Stage hash_code: source files -> code/<instance>.txt.   dvc repro hash_code

A comment or docstring changes no hash, so nothing but this stage reruns for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pipeline.code_hash import write_hashes
from pipeline.params import read_section
from pipeline.params_file import read_yaml
from pipeline.paths import CODE, DVC_YAML
from pipeline.stage import command


@dataclass(frozen=True)
class Section:
    """params.yaml:hash_code."""

    show: int  # names of changed instances that are printed


def check_sections() -> None:
    """Read every stage's section, so that a wrong value in the last one does not wait for the trainings before it.

    Raises:
        ParamsError: names section, key and the nearest known one.
    """
    for stage in read_yaml(DVC_YAML)["stages"]:
        read_section(stage, import_module(f"stages.{stage}").Section)


def main() -> None:
    """Check params.yaml, write the hashes and say what changed."""
    params = read_section("hash_code", Section)
    check_sections()
    changed = write_hashes(CODE, Path())
    more = f" and {len(changed) - params.show} more" if len(changed) > params.show else ""
    print(
        f"hash_code: {len(changed)} changed: {', '.join(changed[: params.show])}{more}"
        if changed
        else "hash_code: same"
    )


if __name__ == "__main__":
    command(main)
