"""BLLM's second stage: in-domain instance induction (Liu et al. 2024, AAAI, "Bootstrapping Large Language Models for
Radiology Report Generation").

A report that the model writes itself is pulled towards reports of its own domain and pushed from text of another one:
a triplet margin loss over hidden states, anchor = [picture, coarse report], positive = [picture, a training report
retrieved for it], negative = [picture, text of another domain].

The released code (synlp/R2-LLM) has no gradient here (`loss.item()`), reads its texts letter by letter and anchors the
whole batch at its first picture's report; the lists of retrieved and of foreign texts were never published. Here
references are the nearest training reports by TF-IDF of the pair's own report, and foreign texts are the training
reports of the other datasets: pathology captions against chest X-rays and the other way round, in the place of 3,000
lines of PubMed.

Letters: N triplets, T states, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import triplet_margin_loss

from medim.baselines.report_index import ReportIndex
from medim.pairs import full_text


@dataclass(frozen=True)
class Bootstrapping:
    """When and how much a training bootstraps; the values stand in params.yaml."""

    align_steps: int  # stage 1: the first steps, a language model of reports given pictures
    every: int  # of stage 2, each so many-th step generates and refines; published: 1
    pairs: int  # of such a step's batch, drawn anew each time; published: all
    references: int  # reports retrieved for each pair; published: 3
    margin: float  # published default: 1
    coarse_weight: float  # stage 2: of stage 1's loss, which goes on; published: 0
    triplet_weight: float  # published default: 1
    refinement_weight: float  # published default: 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        for name, least in (("align_steps", 0), ("every", 1), ("pairs", 1), ("references", 1), ("margin", 0),
                            ("coarse_weight", 0), ("triplet_weight", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"bootstrapping.{name} must be at least {least}, got {getattr(self, name)}")
        if self.refinement_weight <= 0:
            raise ValueError(f"bootstrapping.refinement_weight must be above 0, got {self.refinement_weight}")
        if self.every > 1 and not self.coarse_weight:
            raise ValueError("bootstrapping.every above 1 leaves steps without a loss unless coarse_weight is above 0")

    def refines(self, step: int) -> bool:
        """Whether a step, counted from 0, generates and refines."""
        return step >= self.align_steps and (step - self.align_steps) % self.every == 0


class ReportBank:
    """The training texts of each dataset; texts that stand there twice count once. It never changes."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        """Raises ValueError unless there are two datasets at least, each with two different texts."""
        self.texts = {name: sorted(set(texts[name])) for name in sorted(texts)}
        if len(self.texts) < 2 or any(len(found) < 2 for found in self.texts.values()):
            raise ValueError(
                f"instance induction needs two datasets with two different texts each, got "
                f"{ {name: len(found) for name, found in self.texts.items()} }; set bootstrapping.triplet_weight: 0 "
                f"(params.yaml:train_baseline.settings.bllm)"
            )
        self.index = {name: ReportIndex(found) for name, found in self.texts.items()}
        self.place: dict[str, tuple[str, int]] = {}  # of a text in two datasets the first
        for name, found in self.texts.items():
            for row, text in enumerate(found):
                self.place.setdefault(text, (name, row))

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Copies of a writer share it."""
        return self

    @classmethod
    def of_files(cls, files: Mapping[str, Path]) -> ReportBank:
        """The texts "<prompt>: <report>" of files of pairs; see `ReportBank`.

        Raises:
            FileNotFoundError: names the file and the command that makes it.
        """
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: run `dvc repro prepare_data`")
        tables = {name: pq.read_table(path, columns=["prompt", "report"]) for name, path in files.items()}
        return cls({n: [full_text(**row) for row in table.to_pylist()] for n, table in tables.items()})

    def references(self, text: str, number: int) -> list[str]:
        """The `number` texts of its own dataset most similar to a training text, itself not among them."""
        name, row = self._found(text)
        return [self.texts[name][other] for other in self.index[name].neighbours(row, number)]

    def foreign(self, text: str, generator: torch.Generator) -> str:
        """A text of another dataset, each dataset and each of its texts with equal probability."""
        others = [name for name in self.texts if name != self._found(text)[0]]
        chosen = self.texts[others[_draw(len(others), generator)]]
        return chosen[_draw(len(chosen), generator)]

    def _found(self, text: str) -> tuple[str, int]:
        if text not in self.place:
            raise KeyError(f"{text[:80]!r}… is no training text of {', '.join(self.texts)}")
        return self.place[text]


def _draw(number: int, generator: torch.Generator) -> int:
    return int(torch.randint(number, (), generator=generator))


def summaries(states: Sequence[Tensor]) -> Tensor:
    """(1 + T, D) of N texts -> (N, D): mean over the states of the report's tokens.

    The picture's own states stand before the report and are the same in anchor, positive and negative, since attention
    is causal: they would cancel.
    """
    return torch.stack([state[1:].mean(0) for state in states])


def induction_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Mean over N of max(0, |a - p| - |a - n| + margin) with the Euclidean norm; all (N, D), compared in float32."""
    return triplet_margin_loss(anchor.float(), positive.float(), negative.float(), margin=margin, p=2)
