"""A stage that torchrun starts in several processes: the first one is the stage, the others only compute with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.params_file import PARAMS, load_top
from pipeline.paths import RUNS, World, work_folder
from pipeline.resources import configure
from pipeline.stage import StageRun, stage_run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Follower(StageRun):
    """What the body of a stage sees in every process but the first: it takes no lock and writes nothing."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """The first process logs."""

    def resume_log(self, step: int) -> None:
        """The first process has the curves."""

    def cost(
        self, *, examples: int | None = None, parameters: int | None = None, pretraining_examples: int | None = None
    ) -> None:
        """The first process counts."""

    def place(self, src: Path, dst: Path) -> None:
        """The first process places results."""


@contextmanager
def shared_stage_run(
    stage: str, instance: str | None = None, *, section: Mapping[str, Any] | DataclassInstance,
    inputs: Sequence[Path], outputs: Sequence[Path], params: Path = PARAMS,
) -> Iterator[StageRun]:  # fmt: skip
    """`pipeline.stage.stage_run` in the first process of torchrun (and without it), a `Follower` in the others."""
    if os.environ.get("RANK", "0") == "0":
        with stage_run(stage, instance, section=section, inputs=inputs, outputs=outputs, params=params) as run:
            yield run
        return
    top = load_top(params)
    configure(top.threads, top.seed)
    yield Follower(stage, instance, World(RUNS / top.world), top, work_folder(stage, "follower"))
