"""Stage prepare_reader_study: a page on which people rate generated pairs.   dvc repro prepare_reader_study

in   generated/<model>/*/joint.parquet, data/pairs, models/finding_reader (says what a free pair turned into)
out  reader_study/page.html for the readers, reader_key.json which they must not get (it says which pair is whose)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medim.evaluation import Reference
from medim.generation import read_generated
from medim.metrics.finding_reader import load_finding_reader
from medim.metrics.reader_questions import REAL
from medim.reader_page import write_study
from medim.reader_preparation import Answers, ReaderStudy, prepare_study, shown
from pipeline.params import read_section
from pipeline.paths import world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:prepare_reader_study; no models: no study."""

    models: tuple[str, ...]
    study: ReaderStudy

    def __post_init__(self) -> None:
        """ValueError: see `ReaderStudy.settings`."""
        if self.models:
            self.study.settings(self.models, 0)


def main() -> None:
    """Write page and key."""
    params, world = read_section("prepare_reader_study", Section), world_from_params()
    page, key, reader = world.reader_page(), world.reader_key(), world.model("finding_reader")
    inputs = [world.root / "generated", world.pairs_folder(), reader]
    outputs = [page.parent, key]
    with stage_run("prepare_reader_study", section=params, inputs=inputs, outputs=outputs, live=False) as run:
        judge = load_finding_reader(reader).to(device())
        references = {
            name: Reference(name, world.pairs(name, "test"), world.pairs(name, "train"), judge)
            for name in params.study.datasets
        }
        answers = {model: read(world.sample_files(model)) for model in params.models if model != REAL}
        study = prepare_study(params.models, params.study, answers, references, run.seed)
        print(f"prepare_reader_study: {shown(study)}", flush=True)
        run.cost(examples=params.study.pairs)
        write_study(study, run.work / "send" / page.name, run.work / "keep" / key.name)
        run.place(run.work / "send", page.parent)
        run.place(run.work / "keep" / key.name, key)


def read(files: Sequence[Path]) -> Answers:
    """The free pairs in files of answers, with the hash of the files that hold them."""
    joint = [path for path in files if path.stem == "joint"]
    samples = [sample for path in joint for sample in read_generated(path)]
    return Answers(samples, hashlib.sha256(b"".join(path.read_bytes() for path in joint)).hexdigest()[:16])


if __name__ == "__main__":
    command(main)
