"""Synthetic image-report pairs: a generator is given prompts and makes the rest, shard by shard; each pair is scored.

A file of synthetic pairs has the columns of a file of real ones (`iter_pairs` reads both) and those of where a pair
comes from and how good it is. Pictures and reports are streamed: memory holds one shard and the features of the
training pictures, whatever the number of pairs. A shard that is written is not asked for again after a kill.
Shapes: N pairs, S picture side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from medim.evaluation import Reference
from medim.generation import sample_seed
from medim.metrics.alignment import PhantomJudge
from medim.metrics.finding_reader import FindingReader, features
from medim.metrics.findings import finding_values
from medim.metrics.memorisation import nearest
from medim.pairs import PAIR_SCHEMA, TableWriter, encode_png, full_text, iter_pairs, load_images
from medim.report_filter import PHANTOM_JUDGE, NamedJudge
from medim.systems import ReportLikelihood

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]

TASK = "prompted"  # of the seeds and of the contact sheet
HELD_OUT = "held_out.json"  # beside the files of a generator: the same scores of real held-out pairs
TRAIN_ROWS = 256  # training pictures decoded at once

SYNTHETIC_SCHEMA = pa.schema(
    [
        *PAIR_SCHEMA,
        pa.field("generator", pa.string(), nullable=False),  # name of its folder
        pa.field("model_hash", pa.string(), nullable=False),  # of the files in that folder
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("asked", pa.string(), nullable=False),  # the prompt that was given
        pa.field("evaluations", pa.int32(), nullable=False),  # network evaluations for this pair
        pa.field("alignment", pa.float64()),  # the judge's score, [0, 1]; null: the dataset has no judge
        pa.field("judge", pa.string()),  # its name
        pa.field("faithful", pa.bool_()),  # picture and report have the same findings; null: no reader for them
        pa.field("pmi", pa.float64()),  # log p(report | picture) - log p(report), nats; null: not asked for
        pa.field("nearest", pa.float64(), nullable=False),  # distance to the nearest training picture
        pa.field("nearest_pair", pa.string(), nullable=False),  # its pair
    ]
)


@dataclass(frozen=True)
class SynthesisSettings:
    """How many pairs are made, and how; the values stand in params.yaml."""

    pairs: int  # a dataset: as many of each, so that domains are 1:1
    shard: int  # pairs a shard, which a kill may cost
    chunk: int  # pairs the generator makes at once
    frequency: str  # of the prompts, see `asked_prompts`
    pmi_masks: int  # maskings behind each log p; 0: no pmi

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        for name, least in (("pairs", 1), ("shard", 1), ("chunk", 1), ("pmi_masks", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Origin:
    """Where the pairs of one file come from."""

    generator: str
    model_hash: str
    dataset: str
    seed: int  # of all pairs; each has its own from it


class Made(Protocol):
    """N finished pairs."""

    images: Images  # (N, S, S, 3) uint8
    evaluations: list[int]

    @property
    def prompts(self) -> list[str]:
        """N prompts as they stand in the finished texts."""

    @property
    def reports(self) -> list[str]:
        """N reports without their prompts."""


@runtime_checkable
class PairGenerator(Protocol):
    """A system that finishes pairs of which only the prompt is given (`medim.questions.Questions` is one)."""

    row: str

    def prompted(self, prompts: Sequence[str], seeds: Sequence[int]) -> Made:
        """N pairs that begin with N prompts, each from its own seed."""


def pair_generator(system: object, name: str) -> PairGenerator:
    """The system, if it can be asked for pairs with prompts.

    Raises:
        TypeError: it cannot.
    """
    if not isinstance(system, PairGenerator):
        raise TypeError(
            f"{name} ({type(system).__name__}) makes no pairs from prompts, it has no `prompted`: take another system "
            f"in params.yaml:synthesize_pairs.generators"
        )
    return system


class TrainingPictures:
    """Features and ids of the training pictures of one dataset; the file is streamed once.

    Args:
        reader: gives the features.
        train: Parquet file of the pairs.
        kept: .npz file that holds them afterwards and spares the next process the work; None: none.
    """

    def __init__(self, reader: FindingReader, train: Path, kept: Path | None = None) -> None:
        self.reader = reader
        self.blocks: list[NDArray[np.float32]] = []
        self.ids: list[str] = []
        if kept is not None and kept.is_file():
            with np.load(kept) as there:
                rows, self.ids = there["features"], there["ids"].tolist()
            self.blocks = [rows[start : start + TRAIN_ROWS] for start in range(0, len(rows), TRAIN_ROWS)]
            return
        pairs = iter_pairs(train, TRAIN_ROWS)
        while some := list(islice(pairs, TRAIN_ROWS)):
            self.blocks.append(features(reader, load_images(some)))
            self.ids += [pair.pair_id for pair in some]
        if kept is not None and self.blocks:
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_name(f".{kept.name}.{os.getpid()}.npz")
            np.savez(partial, features=np.concatenate(self.blocks), ids=np.array(self.ids))
            partial.replace(kept)

    def nearest(self, images: Images) -> tuple[Floats, list[str]]:
        """Distance (N,) of the nearest training picture in the space of the reader's features, and its pair's id.

        Raises:
            ValueError: there is no training picture.
        """
        found = nearest(features(self.reader, images), self.blocks)
        return found.distance, [self.ids[row] for row in found.row.tolist()]


@dataclass(frozen=True)
class PairScores:
    """Scores of N pairs; see SYNTHETIC_SCHEMA. `alignment` and `faithful` are None where nothing judges the dataset."""

    alignment: Floats | None
    faithful: NDArray[np.bool_] | None
    nearest: Floats
    nearest_pair: list[str]


class PairScorer:
    """Scores pairs of one dataset.

    Args:
        reference: the dataset; its `test` pairs are the held-out ones that synthetic ones are compared with.
        train: Parquet file of its training pairs.
        judge: name and judge of the alignment; None: the phantom judge of drawn domains, none for others.
        kept: see `TrainingPictures`.
    """

    def __init__(
        self, reference: Reference, train: Path, judge: NamedJudge | None = None, kept: Path | None = None
    ) -> None:
        self.reference = reference
        self.pictures = TrainingPictures(reference.reader, train, kept)
        read = reference.domain is not None and bool(reference.labels)
        if judge is None and read and reference.domain is not None:
            judge = PHANTOM_JUDGE, PhantomJudge(reference.domain.grammar, reference.read_images, reference.labels)
        self.judge, self.read = judge, read

    def scores(self, images: Images, reports: Sequence[str]) -> PairScores:
        """Scores of pictures (N, S, S, 3) uint8 with their N reports."""
        alignment = None if self.judge is None else self.judge[1].scores(images, reports)
        return PairScores(alignment, self._faithful(images, reports), *self.pictures.nearest(images))

    def _faithful(self, images: Images, reports: Sequence[str]) -> NDArray[np.bool_] | None:
        """Whether picture and report have the same findings in the same states."""
        reference = self.reference
        if not self.read or reference.domain is None:
            return None
        shown = finding_values(reference.read_images(images), reference.labels)
        told = finding_values([reference.domain.grammar.read(report) for report in reports], reference.labels)
        same: NDArray[np.bool_] = (shown == told).all(axis=1)
        return same

    def held_out(self) -> PairScores:
        """The same scores of the real held-out pairs.

        Raises:
            ValueError: there are none.
        """
        if not self.reference.test:
            name = self.reference.dataset
            raise ValueError(f"{name} has no held-out pairs to compare with: raise prepare_data.datasets.{name}.val")
        return self.scores(self.reference.test_images, [pair.report for pair in self.reference.test])


def write_held_out(folder: Path, scores: Mapping[str, PairScores]) -> None:
    """Write the scores of real held-out pairs, dataset by dataset."""

    def plain(values: NDArray[Any] | None) -> list[Any] | None:
        return None if values is None else values.tolist()

    page = {
        dataset: {name: plain(getattr(one, name)) for name in ("alignment", "faithful", "nearest")}
        for dataset, one in scores.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HELD_OUT).write_text(json.dumps(page, indent=1, sort_keys=True) + "\n")


def read_held_out(folder: Path, dataset: str) -> dict[str, Floats | None]:
    """`alignment`, `faithful` (0 or 1) and `nearest` of the real held-out pairs of a dataset.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
        KeyError: the dataset is not among them.
    """
    path = folder / HELD_OUT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro synthesize_pairs@{folder.name}`")
    page = json.loads(path.read_text())
    if dataset not in page:
        raise KeyError(f"{path} has no dataset {dataset!r}, it has {', '.join(page)}: rerun synthesize_pairs")
    return {name: None if values is None else np.array(values, float) for name, values in page[dataset].items()}


def synthesize(
    generator: PairGenerator, asked: Sequence[str], scorer: PairScorer, origin: Origin, settings: SynthesisSettings,
    work: Path, out: Path,
) -> int:  # fmt: skip
    """Write `out` (SYNTHETIC_SCHEMA) with a pair for every prompt of `asked`, in order; returns their number.

    A pair depends on its prompt and its seed alone; shard and chunk change no more than how sums are rounded.

    Args:
        generator: see `PairGenerator`.
        asked: see `asked_prompts`.
        scorer: of the dataset.
        origin: of the pairs.
        settings: see `SynthesisSettings`.
        work: folder of the shards, kept between attempts.
        out: the file; it appears whole or not at all.
    """
    with (
        TableWriter(out, SYNTHETIC_SCHEMA) as writer,
        tqdm(total=len(asked), desc=f"{origin.generator} {origin.dataset}", unit="pair", disable=None) as bar,
    ):
        for start in range(0, len(asked), settings.shard):
            numbers = range(start, min(start + settings.shard, len(asked)))
            part = part_file(work, origin.dataset, numbers)
            if not part.is_file():
                write_part(generator, asked, numbers, scorer, origin, settings, part)
            for batch in pq.ParquetFile(part).iter_batches(TRAIN_ROWS):
                for row in batch.to_pylist():
                    writer.write(row)
            bar.update(len(numbers))
    return writer.count


def part_file(work: Path, dataset: str, numbers: range) -> Path:
    """Where `synthesize` keeps the shard of the pairs with these numbers."""
    return work / f"{dataset}-{numbers.start:07d}-{numbers.stop:07d}.parquet"


def write_part(
    generator: PairGenerator, asked: Sequence[str], numbers: range, scorer: PairScorer, origin: Origin,
    settings: SynthesisSettings, out: Path,
) -> int:  # fmt: skip
    """Write one shard, the pairs with these numbers; arguments as in `synthesize`. Returns their number."""
    with TableWriter(out, SYNTHETIC_SCHEMA) as rows:
        for first in range(numbers.start, numbers.stop, settings.chunk):
            some = range(first, min(first + settings.chunk, numbers.stop))
            for row in _made(generator, [asked[n] for n in some], some, scorer, origin, settings):
                rows.write(row)
    return rows.count


def _made(
    generator: PairGenerator, asked: Sequence[str], numbers: range, scorer: PairScorer, origin: Origin,
    settings: SynthesisSettings,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of SYNTHETIC_SCHEMA of the pairs with these numbers."""
    seeds = [sample_seed(origin.seed, TASK, origin.dataset, number) for number in numbers]
    made = generator.prompted(asked, seeds)
    scores = scorer.scores(made.images, made.reports)
    pmi = _pmi(generator, made, seeds, settings)
    for i, number in enumerate(numbers):
        name = f"{origin.dataset}-{origin.generator}-{number:07d}"
        yield {
            "pair_id": name, "study_id": name, "patient_id": name, "dataset": origin.dataset,
            "source": f"{origin.generator} seed {seeds[i]}", "image": encode_png(made.images[i]),
            "prompt": made.prompts[i], "report": made.reports[i], "generator": origin.generator,
            "model_hash": origin.model_hash, "seed": seeds[i], "asked": asked[i], "evaluations": made.evaluations[i],
            "alignment": None if scores.alignment is None else float(scores.alignment[i]),
            "judge": None if scorer.judge is None else scorer.judge[0],
            "faithful": None if scores.faithful is None else bool(scores.faithful[i]),
            "pmi": None if pmi is None else float(pmi[i]),
            "nearest": float(scores.nearest[i]), "nearest_pair": scores.nearest_pair[i],
        }  # fmt: skip


def _pmi(generator: PairGenerator, made: Made, seeds: Sequence[int], settings: SynthesisSettings) -> Floats | None:
    """log p(report | picture) - log p(report) by the generator itself, (N,) nats; None where not asked for.

    Raises:
        TypeError: it is asked for and the generator gives no probabilities.
    """
    if not settings.pmi_masks:
        return None
    if not isinstance(generator, ReportLikelihood):
        raise TypeError(
            f"{generator.row} gives no probabilities: set params.yaml:synthesize_pairs.settings.pmi_masks to 0"
        )
    texts = [full_text(prompt, report) for prompt, report in zip(made.prompts, made.reports, strict=True)]
    given, alone = (
        generator.report_log_p(texts, shown, seeds, settings.pmi_masks, settings.chunk) for shown in (made.images, None)
    )
    return np.asarray(given - alone, dtype=np.float64)
