"""Generation by shards: each chunk of a question is one, and its output is the part that `medim.generation` keeps.

So the stage finds the parts in place and joins them as it always does. Apart from generation.py, because whatever
imports this file depends on the code of every system (medim.system_loading).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medim.diffusion.settings import SamplerSettings
from medim.generation import Question, answer, answer_part, part_file
from medim.pairs import Pair, iter_pairs, read_pairs
from medim.side_answers import TASK as SIDE
from medim.side_answers import answer_sides, score_part
from medim.system_loading import load_system
from medim.systems import ReportLikelihood, System

Job = tuple[Path, Path, Mapping[str, Any]]


def answer_jobs(
    system: System, asked: Sequence[Question], sides: Mapping[str, Sequence[Pair]], files: Mapping[str, Path],
    chunk: int, work: Path,
) -> Iterator[Job]:  # fmt: skip
    """(pair file, part, arguments of `make_answers`' function) of every chunk.

    Args:
        system: whether it gives probabilities decides whether sides are asked about.
        asked: see `medim.generation.questions`.
        sides: dataset -> pairs that `medim.side_answers.answer_sides` asks about.
        files: dataset -> its test pairs, of which all of these are the first; what belongs to no dataset starts from
            the first file, as `medim.generation.questions` says.
        chunk: pairs a part, as for `medim.generation.answer`.
        work: folder of the parts.
    """
    first = next(iter(files.values()))
    of_sides = [Question(SIDE, name, some) for name, some in sides.items()]
    for question in (*asked, *(of_sides if isinstance(system, ReportLikelihood) else ())):
        for start in range(0, len(question.pairs), chunk):
            stop = min(start + chunk, len(question.pairs))
            part = part_file(work, question.dataset, question.task, start, stop)
            arguments = {"task": question.task, "dataset": question.dataset, "start": start, "stop": stop}
            yield files.get(question.dataset, first), part, arguments


def answer_all(
    system: System, asked: Sequence[Question], sides: Mapping[str, Sequence[Pair]], *, seed: int, masks: int,
    chunk: int, parts: Path, out: Path,
) -> int:  # fmt: skip
    """Write the answers to all questions and the scores of sides below `out`, from the parts where they are there.

    Returns:
        Their number.
    """
    total = sum(answer(system, q, seed, chunk, parts, out / q.dataset / f"{q.task}.parquet") for q in asked)
    return total + answer_sides(system, sides, seed, masks, chunk, parts, out / SIDE)


def system_values(
    model: Path, vqgan: Path, sampler: SamplerSettings, sampler_of: Mapping[str, SamplerSettings], device: torch.device
) -> dict[str, Any]:
    """Arguments of `open_system`, which a worker can be sent."""
    of_tasks = {task: asdict(own) for task, own in sampler_of.items()}
    named = {"model": str(model), "vqgan": str(vqgan), "device": str(device)}
    return {**named, "sampler": asdict(sampler), "sampler_of": of_tasks}


def open_system(
    *, model: str, vqgan: str, sampler: Mapping[str, Any], sampler_of: Mapping[str, Mapping[str, Any]], device: str
) -> System:
    """A system from plain values.

    Args:
        model: its folder.
        vqgan: folder of the image tokenizer.
        sampler: values of SamplerSettings; `sampler_of`: those of single tasks.
        device: torch's name of it.
    """
    return load_system(
        Path(model), vqgan=Path(vqgan), sampler=SamplerSettings(**sampler),
        sampler_of={task: SamplerSettings(**own) for task, own in sampler_of.items()}, device=torch.device(device),
    )  # fmt: skip


def make_answers(*, system: Mapping[str, Any], seed: int, masks: int, chunk: int) -> Callable[..., Mapping[str, int]]:
    """What a worker does to a chunk: asks a system of its own.

    Args:
        system: arguments of `open_system`.
        seed: of the samples.
        masks: maskings behind each log p, see `medim.side_answers`.
        chunk: sequences a pass of these.
    """
    asked = open_system(**system)

    def ask(source: Path, target: Path, *, task: str, dataset: str, start: int, stop: int) -> Mapping[str, int]:
        if task == "joint":
            pairs = read_pairs(source, 1) * (stop - start)
        else:
            pairs = list(iter_pairs(source, rows=(start, stop)))
        if task != SIDE:
            return {"samples": answer_part(asked, task, dataset, pairs, start, seed, target)}
        if not isinstance(asked, ReportLikelihood):
            raise ValueError(f"{system['model']} gives no probabilities, so it has no {SIDE} scores")
        return {"samples": score_part(asked, dataset, pairs, start, seed, masks, chunk, target)}

    return ask
