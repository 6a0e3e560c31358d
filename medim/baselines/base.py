"""What a baseline module defines: `METHOD` and `load_system` (see medim/systems.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medim.training import OnLog

PairFiles = Mapping[str, Mapping[str, Path]]  # dataset -> split -> Parquet file of pairs


@dataclass(frozen=True)
class TrainInputs:
    """What every baseline is given: the same pairs, a seed, and where to work and to leave its folder."""

    pairs: PairFiles
    datasets: tuple[str, ...]  # those that it learns from
    settings: Mapping[str, Any]  # its own section of params.yaml
    seed: int
    work: Path  # for checkpoints, kept between attempts
    out: Path  # gets config.json (with "system") and the weights
    on_log: OnLog


@dataclass(frozen=True)
class Method:
    """A row of the tables: who made it and how it is trained."""

    key: str
    label: str
    kind: str  # NA, MED, DDM, MLLM as in the paper's tables; "trivial" for the rules that every system must beat
    source: str
    train: Callable[[TrainInputs], None]
