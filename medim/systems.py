"""What every system that fills a table row offers, whether it is MeDiM, a baseline or a trivial rule.

A system is a trained folder (`models/<name>`, see system_loading.py) and answers three questions, TASKS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medim.pairs import Pair, decode_png, encode_png

TASKS = ("report_to_image", "image_to_report", "joint")
JOINT_DATASET = "all"  # an unconditional sample belongs to no dataset until it is read

GENERATED_SCHEMA = pa.schema(
    [
        pa.field("row", pa.string(), nullable=False),  # table row: "MeDiM", "trivial: constant", …
        pa.field("task", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),  # the pair whose picture or report was given; joint: a number
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("image", pa.binary()),  # PNG
        pa.field("prompt", pa.string(), nullable=False),  # of the generated text
        pa.field("report", pa.string()),
        pa.field("evaluations", pa.int32(), nullable=False),  # network evaluations for this sample
    ]
)


@dataclass(frozen=True)
class Sample:
    """One answer. `image` (S, S, 3) uint8 or None, `report` or None: what the task asked for."""

    row: str
    task: str
    dataset: str
    pair_id: str
    seed: int
    image: NDArray[np.uint8] | None
    prompt: str
    report: str | None
    evaluations: int

    def record(self) -> dict[str, Any]:
        """The row of GENERATED_SCHEMA."""
        return vars(self) | {"image": None if self.image is None else encode_png(self.image)}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Sample:
        """The inverse of `record`."""
        return cls(**record | {"image": None if record["image"] is None else decode_png(record["image"])})


def check_tasks(tasks: Iterable[str]) -> None:
    """Hold names to TASKS.

    Raises:
        ValueError: there is no such task; names those that exist.
    """
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"no task {task!r}: there are {', '.join(TASKS)}")


class System(Protocol):
    """A trained system."""

    tasks: tuple[str, ...]

    def generate(self, task: str, dataset: str, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Sample]:
        """Answer `task` once per pair and row, each from its own seed.

        report_to_image gets the pairs' prompt and report, image_to_report their pictures; joint gets nothing from
        them but their number, and `dataset` is JOINT_DATASET.
        """


@runtime_checkable
class ReportLikelihood(Protocol):
    """A system that also says how probable a report is. `row`: its table row."""

    row: str

    def report_log_p(
        self, texts: Sequence[str], pictures: NDArray[np.uint8] | None, seeds: Sequence[int], masks: int, rows: int
    ) -> NDArray[np.float64]:
        """(B,) log p in nats of "<prompt>: <report>" texts, given pictures (B, S, S, 3) uint8 or, with None, alone.

        Estimated from `masks` maskings that are a function of each text's seed alone; `rows` sequences at once.
        """
