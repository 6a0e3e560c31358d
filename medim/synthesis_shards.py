"""Synthetic pairs by shards: other processes write the parts that `medim.synthesis.synthesize` keeps and joins.

Whoever works opens the generator, and a dataset's scorer when its first shard comes. The features of the training
pictures are computed once, by the process that hands out, and read by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medim.evaluation import Reference
from medim.generation_shards import open_system
from medim.metrics.finding_reader import FindingReader, load_finding_reader
from medim.metrics.qwen_judge import QwenSettings, load_qwen_judge
from medim.report_filter import NamedJudge
from medim.synthesis import (
    Origin,
    PairGenerator,
    PairScorer,
    SynthesisSettings,
    pair_generator,
    part_file,
    synthesize,
    write_part,
)
from medim.synthesis_prompts import asked_prompts, check_prompts, training_prompts

Job = tuple[Path, Path, Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What is asked of one dataset, and who scores the answers."""

    prompts: list[str]  # one a pair
    scorer: PairScorer
    origin: Origin


class PairMaker:
    """A generator that makes the pairs of several datasets.

    Args:
        generator: see `PairGenerator`.
        reader: judges pictures.
        origin: (name, hash) of the generator.
        seed: of all pairs.
        prompts: dataset -> its different prompts.
        files: dataset -> `train` and `val`, Parquet files of its real pairs.
        settings: see `SynthesisSettings`.
        work: folder of the parts and of the features.
        judge: of the alignment, see `PairScorer`.
    """

    def __init__(
        self, generator: PairGenerator, reader: FindingReader, origin: tuple[str, str], seed: int,
        prompts: Mapping[str, Sequence[str]], files: Mapping[str, Mapping[str, Path]], settings: SynthesisSettings,
        work: Path, judge: NamedJudge | None,
    ) -> None:  # fmt: skip
        self.generator, self.reader, self.origin, self.seed, self.judge = generator, reader, origin, seed, judge
        self.prompts, self.files, self.settings, self.work = prompts, files, settings, work
        self._asked: dict[str, Asked] = {}

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.work / "shards"

    def asked(self, dataset: str) -> Asked:
        """What is asked of a dataset; opened once.

        Raises:
            ValueError: a prompt with which none of its pairs begins, see `check_prompts`.
        """
        if dataset not in self._asked:
            train, val = self.files[dataset]["train"], self.files[dataset]["val"]
            known = training_prompts(train)
            check_prompts(dataset, self.prompts[dataset], known)
            prompts = asked_prompts(self.prompts[dataset], self.settings.frequency, known, self.settings.pairs)
            reference = Reference(dataset, val, train, self.reader)
            scorer = PairScorer(reference, train, self.judge, self.work / "features" / f"{dataset}.npz")
            self._asked[dataset] = Asked(prompts, scorer, Origin(*self.origin, dataset, self.seed))
        return self._asked[dataset]

    def jobs(self) -> Iterator[Job]:
        """(training pairs, part, arguments of `make_pairs`' function) of every shard."""
        for dataset in self.prompts:
            count = len(self.asked(dataset).prompts)
            for start in range(0, count, self.settings.shard):
                stop = min(start + self.settings.shard, count)
                part = part_file(self.parts, dataset, range(start, stop))
                yield self.files[dataset]["train"], part, {"dataset": dataset, "start": start, "stop": stop}

    def write(self, dataset: str, out: Path) -> int:
        """Write the file of a dataset, from the parts where they are there; returns its number of pairs."""
        asked = self.asked(dataset)
        return synthesize(self.generator, asked.prompts, asked.scorer, asked.origin, self.settings, self.parts, out)

    def write_shard(self, dataset: str, numbers: range, out: Path) -> int:
        """Write one shard; returns its number of pairs."""
        asked = self.asked(dataset)
        return write_part(self.generator, asked.prompts, numbers, asked.scorer, asked.origin, self.settings, out)


def maker_values(
    *, system: Mapping[str, Any], reader: Path, origin: tuple[str, str], seed: int,
    prompts: Mapping[str, Sequence[str]], files: Mapping[str, Mapping[str, Path]], settings: SynthesisSettings,
    work: Path, judge: QwenSettings | None,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of `open_maker`, which a worker can be sent; `system`: see `system_values`, the others `PairMaker`."""
    return {
        "system": dict(system), "reader": str(reader), "origin": list(origin), "seed": seed,
        "prompts": {dataset: list(some) for dataset, some in prompts.items()},
        "files": {dataset: {split: str(path) for split, path in some.items()} for dataset, some in files.items()},
        "settings": asdict(settings), "work": str(work), "judge": None if judge is None else asdict(judge),
    }  # fmt: skip


def open_maker(
    *, system: Mapping[str, Any], reader: str, origin: Sequence[str], seed: int,
    prompts: Mapping[str, Sequence[str]], files: Mapping[str, Mapping[str, str]], settings: Mapping[str, Any],
    work: str, judge: Mapping[str, Any] | None,
) -> PairMaker:  # fmt: skip
    """A maker from plain values.

    Raises:
        TypeError: the system makes no pairs from prompts, see `pair_generator`.
        FileNotFoundError: weights of generator, reader or judge are missing.
    """
    name, model_hash = origin
    place = torch.device(system["device"])
    seer, chosen = load_finding_reader(Path(reader)).to(place), None if judge is None else QwenSettings(**judge)
    paths = {dataset: {split: Path(path) for split, path in some.items()} for dataset, some in files.items()}
    return PairMaker(
        pair_generator(open_system(**system), name), seer, (name, model_hash), seed, prompts, paths,
        SynthesisSettings(**settings), Path(work),
        None if chosen is None else (chosen.name, load_qwen_judge(chosen, place)),
    )  # fmt: skip


def make_pairs(**values: Any) -> Callable[..., Mapping[str, int]]:
    """What a worker does to a shard: makes and scores its pairs. Arguments are those of `open_maker`."""
    maker = open_maker(**values)

    def make(_source: Path, target: Path, *, dataset: str, start: int, stop: int) -> Mapping[str, int]:
        return {"pairs": maker.write_shard(dataset, range(start, stop), target)}

    return make
