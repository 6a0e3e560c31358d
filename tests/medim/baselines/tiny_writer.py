"""A real report writer of a few hundred numbers: a word depends on the word before it and on the picture's mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medim.baselines.base import Trained, TrainInputs
from medim.baselines.report_writer import ReportWriter, WriterSystem, load_writer
from medim.baselines.writer_prior import Prior
from medim.baselines.writer_training import WriterRecipe, train_writer
from medim.training import Optimisation

OPTIM = Optimisation(
    steps=60, batch_size=8, accumulate=1, lr=0.1, warmup=2, restarts=1, weight_decay=0.0, beta1=0.9, beta2=0.99,
    clip=1.0, ema=0.0, precision="fp32", checkpoint_every=20, validate_every=0, log_every=10,
)  # fmt: skip
LONGEST = 12


class TinyWriter(ReportWriter):
    """log p(word | word before, picture) is linear in both. Word 0 begins and ends a text."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = list(words)
        self.before = nn.Parameter(torch.zeros(len(words) + 1, len(words) + 1))
        self.seen = nn.Parameter(torch.zeros(3, len(words) + 1))

    def ids(self, text: str) -> list[int]:
        return [0, *(self.words.index(word) + 1 for word in text.split() if word in self.words), 0]

    def nats(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        total, count = torch.zeros(()), 0
        for picture, text in zip(images.mean((2, 3)) @ self.seen, texts, strict=True):
            ids = torch.tensor(self.ids(text))
            total = total + F.cross_entropy(self.before[ids[:-1]] + picture, ids[1:], reduction="sum")
            count += len(ids) - 1
        return total, torch.tensor(count)

    def loss(self, images: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        nats, count = self.nats(images, texts)
        return nats / count

    def write(self, images: Tensor, seeds: Sequence[int]) -> list[str]:
        out = []
        for picture in images.mean((2, 3)) @ self.seen:
            ids = [0]
            while len(ids) <= LONGEST and (len(ids) == 1 or ids[-1]):
                ids.append(int((self.before[ids[-1]] + picture).argmax()))
            out.append(" ".join(self.words[i - 1] for i in ids if i))
        return out

    def config(self) -> dict[str, Any]:
        return {"words": self.words}


def build(texts: Sequence[str], _prior: Prior | None = None) -> TinyWriter:
    return TinyWriter(sorted({word for text in texts for word in text.split()}))


def of_config(config: Mapping[str, Any]) -> TinyWriter:
    return TinyWriter(config["words"])


def train(inputs: TrainInputs) -> Trained:
    return train_writer(inputs, WriterRecipe("tiny_writer", OPTIM, 8, build, None, build, kept_whole=False, starts={}))


def load_system(folder: Path, **_: object) -> WriterSystem:
    return WriterSystem(load_writer(folder, of_config), "Tiny")
