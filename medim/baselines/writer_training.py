"""How report writers are trained: the batches, the general prior, and `fit`.

Every writer is given the same pairs in the same order (equal numbers of each dataset in a batch, see
`medim.medim_training.balanced_rows`), and its validation loss is that of teacher forcing on held-out patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medim.baselines.base import Trained, TrainingOrder, TrainInputs
from medim.baselines.contrastive_prior import ContrastedWriter, ContrastTrainee, validation_contrast
from medim.baselines.pretraining import PRETRAINING, Contrast, WriterPretraining, check_one_start, log_apart, pairs_seen
from medim.baselines.report_writer import ReportWriter, WriterBatch, WriterData, save_writer
from medim.baselines.writer_prior import PRIOR, Prior, read_prior
from medim.medim_training import balanced_rows
from medim.pairs import Pair, read_pairs
from medim.tokenizers.vqgan import to_unit
from medim.training import Optimisation, fit


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
    pretraining: WriterPretraining | None
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


def _pretrain(inputs: TrainInputs, recipe: WriterRecipe, pretraining: WriterPretraining, folder: Path) -> None:
    pairs = {name: _training_pairs(inputs, name) for name in pretraining.datasets}
    later = {name: _training_pairs(inputs, name) for name in inputs.datasets} if recipe.kept_whole else {}
    torch.manual_seed(inputs.seed)
    writer = recipe.first(_texts(later | pairs))
    apart = replace(
        inputs, datasets=pretraining.datasets, work=inputs.work / PRETRAINING, out=folder,
        on_log=log_apart(inputs.on_log), order=None,
    )  # fmt: skip
    if pretraining.contrast is None:
        _fit_writer(apart, recipe, pretraining.optim, writer, pairs)
    else:
        _fit_contrast(apart, recipe, pretraining.optim, writer, pairs, pretraining.contrast)


def _fit_contrast(
    inputs: TrainInputs, recipe: WriterRecipe, optim: Optimisation, writer: ReportWriter,
    pairs: Mapping[str, Sequence[Pair]], settings: Contrast,
) -> None:  # fmt: skip
    """Train the picture encoder alone, contrastively, and write the folder `inputs.out`."""
    part = optim.batch_size // optim.accumulate
    if part % len(pairs) or part < 2 * len(pairs):
        raise ValueError(
            f"pretraining.optim: a part of a batch must hold as many pairs of each of the {len(pairs)} datasets, two "
            f"at least, got {part} (params.yaml:train_baseline.settings)"
        )
    train = {name: WriterData.of(found) for name, found in pairs.items()}
    val = {name: WriterData.of(read_pairs(inputs.pairs[name]["val"], recipe.val_pairs)) for name in inputs.datasets}
    held_out = {name: (to_unit(torch.from_numpy(one.images)), one.texts) for name, one in val.items() if len(one)}
    shown = to_unit(torch.from_numpy(next(iter(train.values())).images[:2]))
    module = ContrastedWriter(writer, shown, settings).to(inputs.device).train()

    def validate(averaged: nn.Module, _step: int) -> Mapping[str, float]:
        assert isinstance(averaged, ContrastedWriter)
        return validation_contrast(averaged, held_out)

    batches = balanced_writer_batches(train, optim, inputs.seed)
    result = _averaged(
        inputs, recipe, optim, ContrastTrainee(module, len(pairs)), batches, validate if held_out else None
    )
    assert isinstance(result, ContrastedWriter)
    save_writer(result.writer, inputs.out, {"system": recipe.system, "optim": asdict(optim)})


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

    batches = ordered_writer_batches(train, optim, inputs.seed, inputs.order)
    trainee = WriterTrainee(writer.to(inputs.device).train())
    result = _averaged(inputs, recipe, optim, trainee, batches, validate if held_out else None)
    assert isinstance(result, ReportWriter)
    save_writer(result, inputs.out, {"system": recipe.system, "optim": asdict(optim)})
    return result


def _averaged(
    inputs: TrainInputs, recipe: WriterRecipe, optim: Optimisation, trainee: WriterTrainee | ContrastTrainee,
    batches: Callable[[int, int], WriterBatch], validate: Callable[[nn.Module, int], Mapping[str, float]] | None,
) -> nn.Module:  # fmt: skip
    """`fit` in the work folder of one of the two trainings, named after method and folder; the averaged weights."""
    name = f"{recipe.system.rpartition('.')[2]} {inputs.work.name}"
    return fit(
        trainee, batches, optim, seed=inputs.seed, work=inputs.work, name=name, on_log=inputs.on_log, validate=validate
    ).averaged
