"""What all systems that only write reports share: their data, their folder, their answers (writer_training.py: how they
are trained).

A writer sees a picture and writes "<prompt>: <report>", the text that MeDiM sees too; the prompt is stripped before any
score.

Letters: B pairs of a batch, S pixels a side.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medim.baselines.weight_files import first_names
from medim.pairs import Pair, full_text, load_images, split_prompt
from medim.systems import Sample
from medim.tokenizers.vqgan import to_unit

Images = NDArray[np.uint8]
Writer = TypeVar("Writer", bound="ReportWriter")


@dataclass(frozen=True)
class WriterData:
    """Pictures (N, S, S, 3) uint8 and texts "<prompt>: <report>" of one split of one dataset."""

    images: Images
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, start: int, stop: int) -> WriterData:
        """Pairs start to stop - 1."""
        return WriterData(self.images[start:stop], self.texts[start:stop])

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> WriterData:
        """The pictures and texts of pairs."""
        return cls(load_images(pairs), tuple(full_text(pair.prompt, pair.report) for pair in pairs))


@dataclass(frozen=True)
class WriterBatch:
    """Images (B, 3, S, S) float in [-1, 1] and their B texts."""

    images: Tensor
    texts: tuple[str, ...]


class Contrasted(NamedTuple):
    """What a contrastive pretraining compares with texts."""

    patches: Tensor  # (B, n, d), see `ReportWriter.patches`
    queries: Tensor | None  # (B, Q, D) what learned queries ask of them, without a gradient to the picture encoder


class ReportWriter(nn.Module):
    """A network that writes the report of a picture. Its subclasses are the systems of Tables 3 and 7."""

    PARTS: ClassVar[Mapping[str, tuple[str, ...]]]  # what can stand still -> names of its modules and parameters
    SEEING: ClassVar[tuple[str, ...]]  # parts that a contrastive pretraining trains
    MOVING: ClassVar[tuple[str, ...]] = ()  # parts that do not learn when they are held, but stay in training mode

    def __init__(self) -> None:
        super().__init__()
        self.still: tuple[str, ...] = ()  # modules that stay in eval mode

    @abstractmethod
    def loss(self, images: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """Scalar training loss of B pairs; images (B, 3, S, S) in [-1, 1]; randomness from `generator` (on the CPU) or
        torch's seeded default."""

    def begin_step(self, step: int) -> None:
        """Called before each training loss with the optimiser step from 0, for systems that are trained in stages."""

    @abstractmethod
    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, n, d): what its picture encoder sees of each patch, in raster order."""

    def contrasted(self, images: Tensor) -> Contrasted:
        """(B, 3, S, S) -> what a contrastive pretraining compares with the pictures' texts."""
        return Contrasted(self.patches(images), None)

    @property
    @abstractmethod
    def token_kinds(self) -> int:
        """Ids that `tokens` may give."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, T) of texts, padded on the right, and which of them are no padding (B, T) bool."""

    @abstractmethod
    def nats(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(summed negative log p of the texts' tokens, their number), by teacher forcing, without label smoothing."""

    @abstractmethod
    def write(self, images: Tensor, seeds: Sequence[int]) -> list[str]:
        """B texts "<prompt>: <report>"; a text depends on its picture and its seed alone, not on the batch."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything but the weights that makes this network again (sizes, words), as JSON."""

    def hold(self, frozen: Sequence[str], start: Mapping[str, bool]) -> None:
        """Let parts stand still: they do not learn and keep eval mode.

        Args:
            frozen: names of PARTS.
            start: part -> whether it has pretrained weights.

        Raises:
            ValueError: no such part, or one that would stand still at random weights.
        """
        for part in frozen:
            if part not in self.PARTS:
                raise ValueError(
                    f"frozen holds {part!r}, parts are {', '.join(self.PARTS)} (params.yaml:train_baseline)"
                )
            if not start[part]:
                raise ValueError(
                    f"frozen holds {part!r}, whose weights are random: give it a start or a pretraining, or let it "
                    f"learn (params.yaml:train_baseline.settings)"
                )
            self._hold(part)

    def _hold(self, part: str) -> None:
        names = self.PARTS[part]
        for name, parameter in self.named_parameters():
            if any(name == held or name.startswith(f"{held}.") for held in names):
                parameter.requires_grad_(False)
        if part not in self.MOVING:
            modules = {name for name, _ in self.named_modules()}
            self.still += tuple(name for name in names if name in modules)

    def train(self, mode: bool = True) -> Self:
        """As usual, but that what stands still stays in eval mode."""
        super().train(mode)
        for name in self.still:
            self.get_submodule(name).eval()
        return self


def save_writer(writer: ReportWriter, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write config.json (`extra` and, under "writer", the writer's own) and model.safetensors, tied weights once."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {**extra, "writer": writer.config()}
    (folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    first, state = first_names(writer), writer.state_dict()
    kept = {name: value.contiguous() for name, value in state.items() if first[name] == name}
    save_file(kept, folder / "model.safetensors")


def load_writer(folder: Path, build: Callable[[Mapping[str, Any]], Writer]) -> Writer:
    """The writer in a folder, in eval mode; `build` makes it from its `config`.

    Raises:
        FileNotFoundError: names the file that is missing and the command that makes it.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: run `dvc repro train_baseline@{folder.name}`")
    writer = build(json.loads((folder / "config.json").read_text())["writer"])
    stored = load_file(folder / "model.safetensors")
    tied = {name: stored[first] for name, first in first_names(writer).items() if first in stored}
    writer.load_state_dict(stored | tied)
    return writer.eval()


class WriterSystem:
    """A trained writer behind the interface of `medim.systems.System`."""

    tasks = ("image_to_report",)

    def __init__(self, writer: ReportWriter, row: str) -> None:
        """`row`: its table row."""
        self.writer, self.row = writer.eval(), row

    @torch.no_grad()
    def generate(self, task: str, dataset: str, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Sample]:
        """See `medim.systems.System`.

        Raises:
            ValueError: a task other than image_to_report.
        """
        if task not in self.tasks:
            raise ValueError(f"{self.row} answers {', '.join(self.tasks)}, not {task!r} (params.yaml:generate.tasks)")
        images = to_unit(torch.from_numpy(load_images(pairs))).to(next(self.writer.parameters()).device)
        found = [split_prompt(text) for text in self.writer.write(images, seeds)]
        return [
            Sample(self.row, task, dataset, pair.pair_id, seed, None, prompt, report, 0)
            for pair, seed, (prompt, report) in zip(pairs, seeds, found, strict=True)
        ]
