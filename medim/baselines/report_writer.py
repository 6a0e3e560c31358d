"""What all systems that only write reports share: their data, their training by `fit`, their folder, their answers.

A writer sees a picture and writes "<prompt>: <report>", the text that MeDiM sees too; the prompt is stripped before any
score. Every writer is given the same pairs in the same order (equal numbers of each dataset in a batch, see
`medim.medim_training.balanced_rows`), and its validation loss is that of teacher forcing on held-out patients.

Letters: B pairs of a batch, S pixels a side.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medim.baselines.base import Trained, TrainingOrder, TrainInputs
from medim.baselines.pretraining import PRETRAINING, Pretraining, check_one_start, log_apart, pairs_seen
from medim.baselines.weight_files import first_names
from medim.baselines.writer_prior import PRIOR, Prior, read_prior
from medim.medim_training import balanced_rows
from medim.pairs import Pair, full_text, load_images, read_pairs, split_prompt
from medim.systems import Sample
from medim.tokenizers.vqgan import to_unit
from medim.training import Optimisation, fit

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


class ReportWriter(nn.Module):
    """A network that writes the report of a picture. Its subclasses are the systems of Tables 3 and 7."""

    @abstractmethod
    def loss(self, images: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """Scalar training loss of B pairs; images (B, 3, S, S) in [-1, 1]; randomness from `generator` (on the CPU) or
        torch's seeded default."""

    def begin_step(self, step: int) -> None:
        """Called before each training loss with the optimiser step from 0, for systems that are trained in stages."""

    @abstractmethod
    def nats(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(summed negative log p of the texts' tokens, their number), by teacher forcing, without label smoothing."""

    @abstractmethod
    def write(self, images: Tensor, seeds: Sequence[int]) -> list[str]:
        """B texts "<prompt>: <report>"; a text depends on its picture and its seed alone, not on the batch."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything but the weights that makes this network again (sizes, words), as JSON."""


def balanced_writer_batches(
    data: Mapping[str, WriterData], optim: Optimisation, seed: int
) -> Callable[[int, int], WriterBatch]:
    """(step, part) -> batch, a pure function; the pairs are those that MeDiM sees at this draw with this seed."""
    files = [data[name] for name in sorted(data)]
    size = optim.batch_size // optim.accumulate

    def batch(step: int, part: int) -> WriterBatch:
        first = (step * optim.accumulate + part) * size
        chosen = balanced_rows([len(one) for one in files], range(first, first + size), seed)
        images = np.concatenate([one.images[rows] for one, rows in zip(files, chosen, strict=True)])
        texts = [one.texts[row] for one, rows in zip(files, chosen, strict=True) for row in rows]
        return WriterBatch(to_unit(torch.from_numpy(images)), tuple(texts))

    return batch


def ordered_writer_batches(
    data: Mapping[str, WriterData], optim: Optimisation, seed: int, order: TrainingOrder | None
) -> Callable[[int, int], WriterBatch]:
    """`balanced_writer_batches`; with an order, of the first pairs in the first steps and of the others later.

    Raises:
        ValueError: one of the two has no pairs of a dataset.
    """
    if order is None:
        return balanced_writer_batches(data, optim, seed)
    first = {name: one.part(0, order.first_pairs[name]) for name, one in data.items()}
    later = {name: one.part(order.first_pairs[name], len(one)) for name, one in data.items()}
    empty = [name for name in data if not len(first[name]) or not len(later[name])]
    if empty:
        sizes = {name: (len(first[name]), len(later[name])) for name in empty}
        raise ValueError(f"a training in two parts needs pairs of every dataset in both, got (first, later) {sizes}")
    before, after = (balanced_writer_batches(part, optim, seed) for part in (first, later))
    turn = round(order.first_share * optim.steps)
    return lambda step, part: before(step, part) if step < turn else after(step, part)


class WriterTrainee:
    """A writer as `fit` sees it: one player."""

    def __init__(self, writer: ReportWriter) -> None:
        self.writer = writer
        self.device = next(writer.parameters()).device

    def players(self) -> dict[str, nn.Module]:
        """See `Trainee`."""
        return {"writer": self.writer}

    def loss(
        self, _player: str, batch: WriterBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Trainee`."""
        self.writer.begin_step(step)
        return self.writer.loss(batch.images.to(self.device), batch.texts, generator), {}


@torch.no_grad()
def validation_nats(writer: ReportWriter, val: Mapping[str, WriterData], chunk: int) -> dict[str, float]:
    """`<dataset>/nats_per_token` on all pairs of the validation data, `chunk` at once."""
    device = next(writer.parameters()).device
    out: dict[str, float] = {}
    for name, data in val.items():
        total, tokens = 0.0, 0
        for start in range(0, len(data), chunk):
            images = to_unit(torch.from_numpy(data.images[start : start + chunk])).to(device)
            nats, count = writer.nats(images, data.texts[start : start + chunk])
            total, tokens = total + float(nats), tokens + int(count)
        out[f"{name}/nats_per_token"] = total / tokens
    return out


@dataclass(frozen=True)
class WriterRecipe:
    """How a method makes its writer; torch is seeded before `first` and before `build`.

    A prior that is `kept_whole` brings its words along: they are made of the training texts of both trainings, all of
    which MeDiM's tokenizer sees too. Else each training has the words of its own texts.
    """

    system: str  # module whose `load_system` reads the folder
    optim: Optimisation
    val_pairs: int  # validation pairs a dataset at most
    build: Callable[[Sequence[str], Prior | None], ReportWriter]  # (training texts, prior) -> the untrained writer
    pretraining: Pretraining | None
    first: Callable[[Sequence[str]], ReportWriter]  # texts -> the untrained writer that becomes the prior
    kept_whole: bool  # words and all weights of the prior are kept; else `build` takes a part of the weights
    starts: Mapping[str, str | None]  # see `check_one_start`


def train_writer(inputs: TrainInputs, recipe: WriterRecipe) -> Trained:
    """Train a writer on the pairs and write its folder (averaged weights).

    With a pretraining and without `inputs.prior`, the prior is trained first and written to `inputs.out`/prior; a
    training that was killed later writes it again from its last checkpoint, with the same bytes.

    Raises:
        FileNotFoundError: see `read_prior`.
        ValueError: first weights from two sources, a dataset without pairs, or see `read_prior` and
            `ordered_writer_batches`.
    """
    check_one_start(inputs.prior is not None or recipe.pretraining is not None, recipe.starts)
    folder = inputs.prior
    if folder is None and recipe.pretraining is not None:
        folder = inputs.out / PRIOR
        _pretrain(inputs, recipe, recipe.pretraining, folder)
    prior = None if folder is None else read_prior(folder, recipe.system)
    pairs = {name: _training_pairs(inputs, name) for name in inputs.datasets}
    torch.manual_seed(inputs.seed)
    writer = recipe.build(_texts(pairs), prior)
    main = replace(inputs, work=inputs.work / "training")
    result = _fit_writer(main, recipe, recipe.optim, writer, pairs)
    parameters = sum(value.numel() for value in result.parameters())
    return Trained(parameters, pairs_seen(recipe.optim), 0 if prior is None else prior.examples)


def _pretrain(inputs: TrainInputs, recipe: WriterRecipe, pretraining: Pretraining, folder: Path) -> None:
    pairs = {name: _training_pairs(inputs, name) for name in pretraining.datasets}
    later = {name: _training_pairs(inputs, name) for name in inputs.datasets} if recipe.kept_whole else {}
    torch.manual_seed(inputs.seed)
    writer = recipe.first(_texts(later | pairs))
    apart = replace(
        inputs, datasets=pretraining.datasets, work=inputs.work / PRETRAINING, out=folder,
        on_log=log_apart(inputs.on_log), order=None,
    )  # fmt: skip
    _fit_writer(apart, recipe, pretraining.optim, writer, pairs)


def _training_pairs(inputs: TrainInputs, name: str) -> list[Pair]:
    found = read_pairs(inputs.pairs[name]["train"]) if name in inputs.pairs else []
    if not found:
        raise ValueError(
            f"a training learns from {name!r}, which has no training pairs: give it some in "
            f"params.yaml:prepare_data.datasets and run `dvc repro prepare_data`"
        )
    return found


def _texts(pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    return [pair.full_text for name in sorted(pairs) for pair in pairs[name]]


def _fit_writer(
    inputs: TrainInputs, recipe: WriterRecipe, optim: Optimisation, writer: ReportWriter,
    pairs: Mapping[str, Sequence[Pair]],
) -> ReportWriter:  # fmt: skip
    """Train on `pairs`, write the folder `inputs.out`; returns the writer with averaged weights."""
    val = {name: read_pairs(inputs.pairs[name]["val"], recipe.val_pairs) for name in inputs.datasets}
    held_out = {name: WriterData.of(found) for name, found in val.items() if found}
    train = {name: WriterData.of(found) for name, found in pairs.items()}
    chunk = max(1, optim.batch_size // optim.accumulate)

    def validate(module: nn.Module, _step: int) -> Mapping[str, float]:
        assert isinstance(module, ReportWriter)
        return validation_nats(module, held_out, chunk)

    result = fit(
        WriterTrainee(writer.to(inputs.device).train()),
        ordered_writer_batches(train, optim, inputs.seed, inputs.order), optim,
        seed=inputs.seed, work=inputs.work, name=f"{recipe.system.rpartition('.')[2]} {inputs.work.name}",
        on_log=inputs.on_log, validate=validate if held_out else None,
    ).averaged  # fmt: skip
    assert isinstance(result, ReportWriter)
    save_writer(result, inputs.out, {"system": recipe.system, "optim": asdict(optim)})
    return result


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
