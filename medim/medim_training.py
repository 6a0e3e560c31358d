"""Training of MeDiM on token files: balanced domains, the states of generation, validation per task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medim.backbones.mllm import MLLM, BackboneSettings, check_decoder_keys
from medim.diffusion.absorbing import Nelbo
from medim.diffusion.schedule import get_schedule, nelbo_weight
from medim.distributed import ALONE, Ranks, current_ranks
from medim.model import LossSettings, MeDiM, TokenBatch
from medim.pretrained import Beginning, decoder_settings, initialise_decoder, is_own, load_towers
from medim.tokenizers.text import TextTokenizer
from medim.training import FitResult, OnLog, Optimisation, fit
from medim.vocab import SequenceLayout

Ints = NDArray[np.int32]

# Question -> the training state in which exactly this question is asked
TASK_STATES = {
    "image_to_report": "report_given_picture",
    "report_to_image": "picture_given_report",
    "joint": "joint",
}
CONDITIONS = {"image_to_report": "picture", "report_to_image": "report"}  # the half that is given
# Without the condition: what knowing it gains is the difference to the two questions above
UNCONDITIONAL_STATES = {"report_alone": "report_alone", "picture_alone": "picture_alone"}
VALIDATION_SEED = 20_260_101  # masks of the validation are the same in every training, so that curves compare


@dataclass(frozen=True)
class Tokens:
    """A token file in memory. N pairs, T report ids, n codes."""

    pair_ids: tuple[str, ...]
    text: Ints  # (N, T)
    image: Ints  # (N, n)
    prompt_tokens: Ints  # (N,) leading report ids that are the prompt
    text_tokens: Ints  # (N,) report ids before the padding

    def __len__(self) -> int:
        return len(self.text)

    @property
    def layout(self) -> SequenceLayout:
        """The layout of these lengths."""
        return SequenceLayout(n_text=self.text.shape[1], n_image=self.image.shape[1])

    def batch(self, rows: NDArray[np.int64]) -> TokenBatch:
        """The pairs of these rows."""
        text, image, prompt = (torch.from_numpy(a[rows].astype(np.int64)) for a in
                               (self.text, self.image, self.prompt_tokens))  # fmt: skip
        return TokenBatch(text, image, prompt)


@dataclass(frozen=True)
class TokenData:
    """What a training sees: token files per dataset, their tokenizer's folder, and their codes' codebook (n, d)."""

    train: Mapping[str, Tokens]
    val: Mapping[str, Tokens]
    tokenizer: Path
    codebook: Tensor

    @property
    def codebook_size(self) -> int:
        """n."""
        return len(self.codebook)

    def layout(self) -> SequenceLayout:
        """The one layout of all files.

        Raises:
            ValueError: there are no pairs, or files of different lengths.
        """
        files = [*self.train.values(), *self.val.values()]
        layouts = {tokens.layout for tokens in files}
        if len(layouts) != 1 or any(not len(tokens) for tokens in files):
            raise ValueError(
                f"training needs token files of one length, none of them empty, got {sorted(map(str, layouts))} for "
                f"{sorted({*self.train, *self.val})}: rerun `dvc repro tokenize_pairs`"
            )
        return layouts.pop()


@dataclass(frozen=True)
class Opening:
    """What the first steps are asked instead: to answer from the condition alone.

    Where every word is masked a report can only be told from its picture, and a network begins to look after 16,000
    samples; at uniform times, where the words that are left tell most, it did not after 48,000 (docs/study.md, which
    also says what a long opening costs). Not in the paper, whose decoder has seen pictures before.
    """

    steps: int  # the first ones of the training; 0: none
    states: Mapping[str, float]  # as in LossSettings, like the next two
    all_masked: Mapping[str, float]
    length_known: float

    def over(self, loss: LossSettings) -> LossSettings:
        """The objective of the opening, where `loss` is that of the rest.

        Raises:
            ValueError: see `LossSettings`.
        """
        return replace(loss, states=self.states, all_masked=self.all_masked, length_known=self.length_known, cut=0.0)

    def check(self, steps: int) -> None:
        """Hold it to a training of so many steps.

        Raises:
            ValueError: it would last to the end, or its steps are negative.
        """
        if self.steps and not 0 < self.steps < steps:
            raise ValueError(
                f"settings.opening.steps must lie between 0 (none) and optim.steps, {steps}, got {self.steps}"
            )


class Training(Protocol):
    """What `train_denoiser` asks of settings, whatever the backbone."""

    @property
    def loss(self) -> LossSettings:
        """The objective that validation starts from."""

    @property
    def val_pairs(self) -> int:
        """Validation pairs per dataset."""

    def objective(self, step: int) -> LossSettings:
        """What a step is trained on, counted from 0."""


@dataclass(frozen=True)
class MeDiMSettings:
    """The model and its objective; the values stand in params.yaml."""

    backbone: BackboneSettings
    noise: str  # noise schedule, see medim.diffusion.schedule
    opening: Opening
    loss: LossSettings
    val_pairs: int  # validation pairs per dataset

    def __post_init__(self) -> None:
        """Check the noise schedule and the opening.

        Raises:
            ValueError: samples are masked whole where the schedule gives them no weight; see also `get_schedule` and
                `LossSettings`.
        """
        last = nelbo_weight(get_schedule(self.noise), torch.ones((), dtype=torch.float64))
        opening = self.opening.over(self.loss)
        trained = [self.loss, opening] if self.opening.steps else [self.loss]
        if not float(last) and any(share for loss in trained for share in loss.all_masked.values()):
            raise ValueError(
                f"noise {self.noise} gives samples that are masked whole the weight 0, so they would teach nothing: "
                f"set the shares of all_masked to 0, or noise to log_linear"
            )

    def objective(self, step: int) -> LossSettings:
        """What a step is trained on, counted from 0."""
        return self.opening.over(self.loss) if step < self.opening.steps else self.loss


def read_tokens(path: Path, limit: int | None = None) -> Tokens:
    """The first `limit` pairs (None: all) of a token file.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro tokenize_pairs`")
    table = pq.read_table(path).slice(0, limit)

    def column(name: str) -> Ints:
        values = table.column(name).combine_chunks()
        flat = values.flatten() if name in ("text", "image") else values
        return flat.to_numpy().astype(np.int32)

    text, image = (column(name).reshape(len(table), -1) for name in ("text", "image"))
    return Tokens(
        tuple(table.column("pair_id").to_pylist()), text, image, column("prompt_tokens"), column("text_tokens")
    )


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, dataset: int, epoch: int, num: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, dataset, epoch]).permutation(num)


def balanced_rows(sizes: Sequence[int], draws: range, seed: int) -> list[NDArray[np.int64]]:
    """Rows of each dataset for the given draws of a training.

    Draw g goes to dataset g mod D, whatever the datasets' sizes (paper Sec. 3.1: balanced), and is the (g div D)-th of
    it, in an order that is shuffled anew for each pass.
    """
    out = []
    for number, size in enumerate(sizes):
        turns = [g // len(sizes) for g in draws if g % len(sizes) == number]
        rows = [_permutation(seed, number, turn // size, size)[turn % size] for turn in turns]
        out.append(np.array(rows, dtype=np.int64))
    return out


def balanced_batches(data: Mapping[str, Tokens], optim: Optimisation, seed: int) -> Callable[[int, int], TokenBatch]:
    """(step, part) -> batch: a pure function, so that a resumed run sees the same data; see `balanced_rows`."""
    files = [data[name] for name in sorted(data)]
    size = optim.batch_size // optim.accumulate

    def batch(step: int, part: int) -> TokenBatch:
        first = (step * optim.accumulate + part) * size
        chosen = balanced_rows([len(tokens) for tokens in files], range(first, first + size), seed)
        parts = [tokens.batch(rows) for tokens, rows in zip(files, chosen, strict=True)]
        text, image, prompt = (torch.cat([getattr(p, f) for p in parts]) for f in ("text", "image", "prompt_tokens"))
        return TokenBatch(text, image, prompt, (part, optim.accumulate))

    return batch


class MeDiMTrainee:
    """MeDiM as `fit` sees it: one player, whose name begins its curves' names; processes may share its batches."""

    def __init__(self, model: MeDiM, settings: Training, player: str = "medim", ranks: Ranks = ALONE) -> None:
        self.model, self.settings, self.player, self.ranks = model, settings, player, ranks

    def players(self) -> dict[str, nn.Module]:
        """See `Trainee`."""
        return {self.player: self.model}

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """See `SharedTrainee`: the backbone's layers."""
        assert isinstance(module, MeDiM)
        return module.backbone.layers()

    def loss(
        self, _player: str, batch: TokenBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Trainee`; logs nats per token of each modality."""
        result = self.model.loss(batch, self.settings.objective(step), generator, self.ranks)
        return result.loss, result.logs()


@torch.no_grad()
def validation_nelbo(model: MeDiM, val: Mapping[str, Tokens], settings: Training, chunk: int) -> dict[str, float]:
    """`<dataset>/<task>` -> nats per token of the NELBO (Eq. 6, uncapped) on the first `val_pairs` pairs.

    Beside the tasks, the report and the picture alone. And whether the network looks at its condition:
    `<dataset>/own_picture_saves` and `own_report_saves`, nats per report and per picture that the pair's own condition
    saves against that of the pair half the split away (another patient: their pairs stand together); 0 where only the
    domain is seen, left out where there is one pair. Masks and times are fixed, the same with every condition, at every
    step and in every training; the prompt and EOS are predicted too.

    Args:
        chunk: pairs per network call.
    """
    out: dict[str, float] = {}
    for name, tokens in val.items():
        num = min(settings.val_pairs, len(tokens))
        rows = [np.arange(start, min(start + chunk, num)) for start in range(0, num, chunk)]
        for task, state in (TASK_STATES | UNCONDITIONAL_STATES).items():
            batches = [tokens.batch(r) for r in rows]
            out[f"{name}/{task}"] = own = _nats(model, batches, settings.loss, state)
            if task in CONDITIONS and num > 1:
                others = [_with_condition(tokens, task, r, (r + num // 2) % num) for r in rows]
                saved = _nats(model, others, settings.loss, state) - own
                length = model.layout.n_text if task == "image_to_report" else model.layout.n_image
                out[f"{name}/own_{CONDITIONS[task]}_saves"] = saved * length
    return out


def _with_condition(tokens: Tokens, task: str, rows: NDArray[np.int64], others: NDArray[np.int64]) -> TokenBatch:
    """Pairs whose given half comes from other rows."""
    asked, given = (rows, others) if task == "image_to_report" else (others, rows)
    return replace(tokens.batch(asked), image=tokens.batch(given).image)


def _nats(model: MeDiM, batches: Sequence[TokenBatch], settings: LossSettings, state: str) -> float:
    loss = replace(
        settings, states={state: 1.0}, prompt_keep=0.0, length_known=0.0, cut=0.0, condition_dropout=0.0,
        weighting="nelbo", all_masked={}, complementary=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    return nats_per_token([model.loss(batch, loss, generator) for batch in batches])


def nats_per_token(parts: list[Nelbo]) -> float:
    """Mean over all tokens that the parts stand for."""
    nats = sum(float(p.text.sum() + p.image.sum()) for p in parts)
    return nats / sum(int(p.text_tokens.sum() + p.image_tokens.sum()) for p in parts)


def build_medim(data: TokenData, settings: MeDiMSettings, seed: int, beginning: Beginning) -> MeDiM:
    """A model of the data's vocabulary and layout, initialised from `seed` where nothing pretrained is given.

    A real checkpoint brings its own decoder configuration, which takes the place of the settings'.
    """
    pretrained, towers = beginning.decoder, beginning.towers
    torch.manual_seed(seed)
    tokenizer = TextTokenizer.load(data.tokenizer)
    backbone = settings.backbone
    if pretrained is not None and not is_own(pretrained.source):
        backbone = replace(backbone, decoder=decoder_settings(pretrained))
    else:
        check_decoder_keys(backbone.decoder)
    model = MeDiM(tokenizer, data.codebook_size, data.layout(), backbone, settings.noise)
    assert isinstance(model.backbone, MLLM)
    if pretrained is None:
        model.backbone.start_codes(data.codebook, torch.Generator().manual_seed(seed))
    else:
        counts = initialise_decoder(model.backbone, tokenizer, pretrained, seed)
        print(f"train_medim: decoder from {pretrained.source}: {counts}", flush=True)
    if model.backbone.refiner is not None and backbone.code_rows == "codebook":
        model.backbone.refiner.start_codes(data.codebook, torch.Generator().manual_seed(seed))
    if model.backbone.towers is not None and towers is not None:
        print(f"train_medim: {load_towers(model.backbone, towers)} tensors of towers from {towers}", flush=True)
    return model


def train_denoiser(
    model: MeDiM, data: TokenData, settings: Training, optim: Optimisation, *, seed: int, work: Path, on_log: OnLog,
    player: str, device: torch.device,
) -> FitResult:  # fmt: skip
    """Train a model from where it stands; the result's `averaged` is of its class.

    Args:
        model: goes to `device`.
        data: tokens.
        settings: objective and validation.
        work: checkpoints; a killed training goes on from there.
        player: begins the names of its curves.
    """
    model = model.to(device).train()
    chunk = max(1, optim.batch_size // optim.accumulate)

    def validate(module: nn.Module, _step: int) -> Mapping[str, float]:
        assert isinstance(module, MeDiM)
        return validation_nelbo(module, data.val, settings, chunk)

    return fit(
        MeDiMTrainee(model, settings, player, current_ranks()), balanced_batches(data.train, optim, seed), optim,
        seed=seed, work=work, name=model.stage, on_log=on_log, validate=validate if data.val else None,
    )  # fmt: skip


def train_medim(
    data: TokenData, settings: MeDiMSettings, optim: Optimisation, *, seed: int, work: Path, out: Path, on_log: OnLog,
    beginning: Beginning, device: torch.device, extra: Mapping[str, Any] | None = None,
) -> FitResult:  # fmt: skip
    """Train and write the model folder `out` (averaged weights).

    In a `medim.distributed.process_group` its processes train together and the first one writes.

    Args:
        data: tokens, tokenizer, codebook size.
        settings: model and objective; a variant of Table 4 differs here only.
        work: checkpoints; a killed training goes on from there.
        beginning: where the weights of decoder and towers come from.
        extra: joins the folder's config.json.
    """
    ranks = current_ranks()
    result = train_denoiser(
        build_medim(data, settings, seed, beginning), data, settings, optim, seed=seed, work=work, on_log=on_log,
        player="medim", device=device,
    )  # fmt: skip
    assert isinstance(result.averaged, MeDiM)
    processes = {} if ranks.world == 1 else {"processes": ranks.world}  # sums in another order: other last bits
    result.averaged.save(out, {**(extra or {}), **processes})
    return result
