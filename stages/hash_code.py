"""Stage hash_code: source files -> code/<instance>.txt.   dvc repro hash_code

A comment or docstring changes no hash, so nothing but this stage reruns for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.code_hash import write_hashes
from pipeline.params import read_section
from pipeline.paths import CODE
from pipeline.stage import command


@dataclass(frozen=True)
class Section:
    """params.yaml:hash_code."""

    show: int  # names of changed instances that are printed


def main() -> None:
    """Write the hashes and say what changed."""
    params = read_section("hash_code", Section)
    changed = write_hashes(CODE, Path())
    more = f" and {len(changed) - params.show} more" if len(changed) > params.show else ""
    print(
        f"hash_code: {len(changed)} changed: {', '.join(changed[: params.show])}{more}"
        if changed
        else "hash_code: same"
    )


if __name__ == "__main__":
    command(main)
