"""Asks a system every question, chunk by chunk; what is finished survives a kill and is not asked again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from medim.pairs import Pair, TableWriter
from medim.systems import GENERATED_SCHEMA, JOINT_DATASET, Sample, System


@dataclass(frozen=True)
class Question:
    """One task on one dataset: the pairs it starts from (for joint samples only their number counts)."""

    task: str
    dataset: str
    pairs: Sequence[Pair]


def questions(system: System, test: Mapping[str, Sequence[Pair]], tasks: Sequence[str], joint: int) -> list[Question]:
    """What a system can answer: the tasks asked for that it knows, on every test set, and `joint` free samples.

    Raises:
        ValueError: the system knows none of the tasks.
    """
    known = [task for task in tasks if task in system.tasks]
    if not known:
        raise ValueError(f"the system answers {system.tasks}, none of {list(tasks)} (params.yaml:generate.tasks)")
    out = [Question(t, dataset, pairs) for t in known if t != "joint" for dataset, pairs in test.items() if pairs]
    if "joint" in known and joint:
        blank = next(iter(test.values()))[0]
        out.append(Question("joint", JOINT_DATASET, [blank] * joint))
    return out


def sample_seed(seed: int, task: str, dataset: str, number: int) -> int:
    """63-bit seed of one sample: the same for every system, so that their draws are comparable."""
    digest = hashlib.sha256(f"{seed}/{task}/{dataset}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def answer(system: System, question: Question, seed: int, chunk: int, work: Path, out: Path) -> int:
    """Write `out` (GENERATED_SCHEMA) with all answers to one question; returns their number.

    Args:
        chunk: pairs a batch; each finished chunk is a file in `work` and is read back after a restart.
        work: kept between attempts.
    """
    name = f"{question.task} {question.dataset}"
    with TableWriter(out, GENERATED_SCHEMA) as writer:
        for sample in _samples(system, question, seed, chunk, work, name):
            writer.write(sample)
    return writer.count


def part_file(work: Path, dataset: str, task: str, start: int, stop: int) -> Path:
    """Where the answers to pairs start … stop - 1 of a question are kept."""
    return work / f"{dataset}-{task}-{start:07d}-{stop:07d}.parquet"


def answer_part(
    system: System, task: str, dataset: str, pairs: Sequence[Pair], start: int, seed: int, part: Path
) -> int:
    """Write `part` (GENERATED_SCHEMA), the answers to one chunk whose first pair is number `start`; their number."""
    seeds = [sample_seed(seed, task, dataset, start + n) for n in range(len(pairs))]
    with TableWriter(part, GENERATED_SCHEMA) as writer:
        for sample in system.generate(task, dataset, pairs, seeds):
            writer.write(sample.record())
    return writer.count


def _samples(
    system: System, question: Question, seed: int, chunk: int, work: Path, name: str
) -> Iterator[dict[str, object]]:
    total = len(question.pairs)
    with tqdm(total=total, desc=name, unit="pair", disable=None) as bar:
        for start in range(0, total, chunk):
            stop = min(start + chunk, total)
            part = part_file(work, question.dataset, question.task, start, stop)
            if not part.is_file():
                answer_part(system, question.task, question.dataset, question.pairs[start:stop], start, seed, part)
            yield from pq.read_table(part).to_pylist()
            bar.update(stop - start)


def read_generated(path: Path) -> list[Sample]:
    """All samples of one file.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro generate`")
    return [Sample.of_record(row) for row in pq.read_table(path).to_pylist()]
