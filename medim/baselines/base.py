"""What a baseline module defines: `METHOD` and `load_system` (see medim/systems.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medim.training import OnLog

PairFiles = Mapping[str, Mapping[str, Path]]  # dataset -> split -> Parquet file of pairs


@dataclass(frozen=True)
class TrainingOrder:
    """Pairs that a training sees before the others, for methods that train by `medim.baselines.report_writer`.

    Steps, learning rate and averages are those of a training without an order. RoentGen-v2 (arXiv:2508.16783), which
    pretrains on synthetic pairs and then fine-tunes on real ones, begins a second schedule instead.
    """

    first_pairs: Mapping[str, int]  # dataset -> leading pairs of its training file that the first steps see, alone
    first_share: float  # of the steps; the later ones see the other pairs


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
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tokens: PairFiles = field(default_factory=dict)  # the same pairs as ids (data/tokens)
    tokenizer: Path | None = None  # folder of the report tokenizer, for those that read tokens
    vqgan: Path | None = None  # folder of the VQGAN that made the codes
    prior: Path | None = None  # of the report writers: folder "prior" of another training of the same method
    order: TrainingOrder | None = None  # None: every step draws from all pairs


@dataclass(frozen=True)
class Trained:
    """What a training took, for the tables."""

    parameters: int  # of the network; 0: there is none
    examples: int  # pairs that it saw, steps x batch_size
    pretraining_examples: int  # pairs that its prior's training saw, this one or an earlier one; 0: no such prior


@dataclass(frozen=True)
class Method:
    """A row of the tables: who made it and how it is trained."""

    key: str
    label: str
    kind: str  # NA, MED, DDM, MLLM as in the paper's tables; "trivial" for the rules that every system must beat
    source: str
    train: Callable[[TrainInputs], Trained]
