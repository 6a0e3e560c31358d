"""Measures a setting of the sampler on a dataset, and keeps what was measured in a file that can be gone on with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.sampler_grid import changes
from medim.data import get_domain, is_drawn
from medim.data.domain import Findings, Grammar, labels_of
from medim.diffusion.settings import SamplerSettings
from medim.evaluation import states_of
from medim.generation import sample_seed
from medim.metrics.finding_reader import FindingReader, read_pictures
from medim.metrics.findings import finding_scores, sentence_validity
from medim.pairs import Pair, full_text, load_images
from medim.questions import Answers, Questions


@dataclass(frozen=True)
class Ground:
    """N validation pairs of one dataset with what answers are held against. `codes` (N, n) int64 of their pictures."""

    dataset: str
    pairs: Sequence[Pair]
    codes: Tensor
    truth: Sequence[Findings]
    labels: tuple[str, ...]
    grammar: Grammar


def ground_of(dataset: str, pairs: Sequence[Pair], questions: Questions) -> Ground:
    """The pairs of a drawn dataset, their pictures as codes.

    Raises:
        ValueError: there are no pairs, or nobody knows the findings of this dataset.
    """
    if not is_drawn(dataset):
        raise ValueError(f"the findings of {dataset} are not known, so nothing can be scored: name drawn datasets")
    if not pairs:
        raise ValueError(f"{dataset} has no validation pairs: raise prepare_data.datasets.{dataset}.val in params.yaml")
    domain = get_domain(dataset)
    codes = questions.codes_of(load_images(pairs))
    return Ground(dataset, pairs, codes, states_of(pairs), labels_of(domain.findings), domain.grammar)


def measure(
    questions: Questions, task: str, ground: Ground, reader: FindingReader, *, seed: int, chunk: int, resamples: int
) -> dict[str, Any]:
    """Ask one task on all pairs of a ground and score the answers.

    Args:
        questions: model, VQGAN and sampler.
        task: image_to_report or report_to_image.
        ground: the pairs.
        reader: the judge of pictures.
        seed: of the samples (the same for every setting, so that settings are compared on the same draws) and of the
            bootstrap.
        chunk: pairs a batch.
        resamples: bootstrap draws.

    Returns:
        `finding_f1` and, of reports, `sentence_validity`, each {value, low, high, n}; `evaluations`, mean passes
        through the network per sample, those of guidance and of the report's length counted; `seconds` of asking; `n`.
    """
    started, asked = time.perf_counter(), []
    for start in range(0, len(ground.pairs), chunk):
        numbers = range(start, min(start + chunk, len(ground.pairs)))
        seeds = [sample_seed(seed, task, ground.dataset, number) for number in numbers]
        asked.append(_ask(questions, task, ground, numbers, seeds))
    seconds = time.perf_counter() - started
    scores = {}
    if task == "image_to_report":
        reports = [report for answers in asked for report in answers.reports]
        found = [ground.grammar.read(report) for report in reports]
        scores["sentence_validity"] = sentence_validity(reports, ground.grammar, seed, resamples)
    else:
        found = [states for answers in asked for states in read_pictures(reader, answers.images, ground.dataset)]
    scores["finding_f1"] = finding_scores(ground.truth, found, ground.labels, seed, resamples)["finding_f1"]
    evaluations = [number for answers in asked for number in answers.evaluations]
    return {
        "evaluations": sum(evaluations) / len(evaluations),
        "seconds": round(seconds, 3),
        "n": len(evaluations),
        **{name: score._asdict() for name, score in sorted(scores.items())},
    }


def _ask(questions: Questions, task: str, ground: Ground, numbers: range, seeds: Sequence[int]) -> Answers:
    if task == "image_to_report":
        return questions.image_to_report(ground.codes[numbers.start : numbers.stop], seeds)
    if task == "report_to_image":
        pairs = ground.pairs[numbers.start : numbers.stop]
        return questions.report_to_image([full_text(pair.prompt, pair.report) for pair in pairs], seeds)
    raise ValueError(f"no task {task!r} to measure: there are image_to_report and report_to_image")


@dataclass(frozen=True)
class Wanted:
    """A point to be measured. `key` names it in the file: `<dataset>/<task>/<changes>`."""

    key: str
    dataset: str
    task: str
    settings: SamplerSettings

    @property
    def group(self) -> str:
        """Points of a group are compared with the group's default."""
        return f"{self.dataset}/{self.task}"


class Record:
    """What was measured: `points` by key, and `runs`, each with the seconds of the defaults measured in it.

    A file whose `identity` (hashes of models and pairs, settings, numbers) is another one is not gone on with.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity = path, dict(identity)
        self.points: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        self.differs: list[str] = []  # keys of `identity` for which an earlier file is of no use
        if path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            self.differs = sorted(key for key, value in self.identity.items() if old["identity"].get(key) != value)
            if not self.differs:
                self.points, self.runs = old["points"], old["runs"]

    def save(self, described: Mapping[str, Any]) -> None:
        """Write the file whole or not at all; `described` are keys beside identity, runs and points."""
        page = {"identity": self.identity, **described, "runs": self.runs, "points": self.points}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def missing(wanted: Sequence[Wanted], record: Record) -> list[Wanted]:
    """Points that were not measured, each once; before the first of each group stands the group's default.

    That default is measured again even where it is known, because seconds are compared within a run only.
    """
    fresh = [one for one in {one.key: one for one in wanted}.values() if one.key not in record.points]
    groups = {one.group for one in fresh}
    defaults = [one for one in {one.key: one for one in wanted}.values() if _is_default(one) and one.group in groups]
    return [*defaults, *(one for one in fresh if not _is_default(one))]


def _is_default(one: Wanted) -> bool:
    return one.key == f"{one.group}/default"


def measure_all(
    todo: Sequence[Wanted], bases: Mapping[str, SamplerSettings], record: Record, run: Mapping[str, Any],
    ask: Callable[[Wanted], dict[str, Any]], save: Callable[[], None],
) -> None:  # fmt: skip
    """Measure points in order and save after each.

    Args:
        todo: see `missing`.
        bases: task -> its default.
        record: gets the points and a new run.
        run: what is said of this run (device, threads, ...).
        ask: measures one point, see `measure`.
        save: writes the record.
    """
    if not todo:
        return
    number = len(record.runs)
    record.runs.append({**run, "default_seconds": {}})
    for one in todo:
        found = ask(one)
        if _is_default(one):
            record.runs[number]["default_seconds"][one.group] = found["seconds"]
        record.points[one.key] = {"changes": changes(bases[one.task], one.settings), **found, "run": number}
        save()


def ratios(key: str, record: Record) -> dict[str, float | None]:
    """finding_f1, evaluations and seconds of a point over those of its group's default; None over nothing.

    Seconds are compared with the default measured in the same run.
    """
    point, group = record.points[key], "/".join(key.split("/")[:2])
    default = record.points[f"{group}/default"]
    seconds = record.runs[point["run"]]["default_seconds"][group]
    return {
        "finding_f1": _over(point["finding_f1"]["value"], default["finding_f1"]["value"]),
        "evaluations": _over(point["evaluations"], default["evaluations"]),
        "seconds": _over(point["seconds"], seconds),
    }


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
