"""Contrastive training of the towers: which report of the batch belongs to which picture?

Symmetric cross-entropy over cosines with a learned scale, as CLIP (Radford et al. 2021, arXiv:2103.00020, Fig. 3). What
differs: pictures are contrasted with reports of their own dataset only, since otherwise the domain is most of the
answer; and of a share of the pairs one half has a part of its tokens masked, because the denoiser will show the towers
half-finished pairs (masking as in FLIP, Li et al. 2022, arXiv:2212.00794, which drops patches for speed): codes at
random, words at random or from a place on to the end, as the sampler shows them; and in the later steps the reports
among which a picture finds its own hold copies of all of them with a sentence too many (`spliced_reports`). Pairs whose
reports are equal to the letter count as wrong answers to each other, as in CLIP.

Letters: B pairs of a batch, n codes of a picture, T report tokens, K reports beside the pairs' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medim.backbones.towers import Towers, TowerSettings
from medim.medim_training import TokenData, Tokens, balanced_batches
from medim.model import TokenBatch
from medim.spliced_reports import spliced
from medim.tokenizers.text import TextTokenizer
from medim.training import FitResult, OnLog, Optimisation, fit
from medim.vocab import SharedVocab


@dataclass(frozen=True)
class TowerTraining:
    """How towers are trained; the values stand in params.yaml."""

    masked: float  # share of pairs of which a part of one half, picture or report, is masked
    cut: float  # share of those reports of which all from a place on is masked, the end with it; the others at random
    spliced: float  # share of the steps, the last ones, in which reports with a sentence too many are wrong answers too
    val_pairs: int  # validation pairs a dataset

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ValueError: one lies outside [0, 1].
        """
        for name, share in (("masked", self.masked), ("cut", self.cut), ("spliced", self.spliced)):
            if not 0 <= share <= 1:
                raise ValueError(f"pretrain_towers.training.{name} must lie in [0, 1], got {share} (params.yaml)")


def masked_parts(
    report_tokens: Tensor, shape: tuple[int, int], settings: TowerTraining, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(B, n) and (B, T) bool: which codes and words of B pairs are masked; of each pair those of one half at most.

    Rates are uniform in [0, 1], and so is the share of the words that stand before a cut.

    Args:
        report_tokens: (B,) int64, report tokens before the first EOS.
        shape: n and T.
        settings: shares.
        generator: on the CPU.
    """
    pairs, (codes, words) = len(report_tokens), shape
    which, rate, kind = torch.rand(3, pairs, 1, generator=generator)
    at_random = torch.rand(pairs, codes + words, generator=generator) < rate
    behind = torch.arange(words) >= (rate * (report_tokens.cpu()[:, None] + 1)).floor()
    report = (which >= settings.masked / 2) & (which < settings.masked)
    return at_random[:, :codes] & (which < settings.masked / 2), report & torch.where(
        kind < settings.cut, behind, at_random[:, codes:]
    )


def contrastive_nats(similarities: Tensor, wrong: Tensor | None = None) -> Tensor:
    """Mean nats of finding the report of a picture and the picture of a report among B, from (B, B) logits.

    Args:
        similarities: of pictures against the reports of all pairs.
        wrong: (B, K) logits of the pictures against reports that belong to none; they are searched as well.
    """
    own = torch.arange(len(similarities), device=similarities.device)
    reports = similarities if wrong is None else torch.cat([similarities, wrong], 1)
    return (cross_entropy(reports, own) + cross_entropy(similarities.T, own)) / 2


def contrast_within(whole: Tensor, datasets: int) -> tuple[Tensor, Tensor]:
    """`contrastive_nats` of each dataset's own logits, averaged; how often the own report is nearest among the pairs'.

    Args:
        whole: (B, B) logits, pairs of one dataset after those of another, as many of each; or (B, 2 B): reports that
            belong to no picture stand behind the pairs' own, in the same order of datasets.
        datasets: their number.
    """
    size = len(whole) // datasets
    parts = [
        [block[:, i * size : (i + 1) * size] for block in whole[i * size : (i + 1) * size].split(len(whole), 1)]
        for i in range(datasets)
    ]
    right = torch.cat([own.argmax(1) == torch.arange(size, device=own.device) for own, *_ in parts])
    return torch.stack([contrastive_nats(*part) for part in parts]).mean(), right.float().mean()


def contrast_scores(name: str, similarities: Tensor) -> dict[str, float]:
    """Of a dataset's validation pairs: nats, the share of pictures whose own report is nearest, and chance."""
    nats, right = contrast_within(similarities, 1)
    return {
        f"{name}/nats": float(nats), f"{name}/own_report_nearest": float(right), f"{name}/chance": 1 / len(similarities)
    }  # fmt: skip


class TowerTrainee:
    """The towers as `fit` sees them: one player."""

    def __init__(
        self, towers: Towers, vocab: SharedVocab, tokenizer: TextTokenizer, settings: TowerTraining, datasets: int,
        steps: int,
    ) -> None:  # fmt: skip
        """A trainee.

        Args:
            towers: what is trained.
            vocab: gives the towers' [MASK].
            tokenizer: that of the reports.
            settings: what is masked, when reports are spliced.
            datasets: of how many a batch holds an equal number of pairs each, one dataset after the other.
            steps: of the whole training.
        """
        self.towers, self.vocab, self.settings, self.datasets = towers, vocab, settings, datasets
        self.eos, self.last_characters = tokenizer.eos_id, tokenizer.last_characters()
        self.first_spliced = round(steps * (1 - settings.spliced))

    def players(self) -> dict[str, nn.Module]:
        """See `Trainee`."""
        return {"towers": self.towers}

    def loss(
        self, _player: str, batch: TokenBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Trainee`; logs the nats, the scale and how often the own report is the nearest."""
        batch = batch.to(self.towers.log_scale.device)
        shape = batch.image.shape[1], batch.text.shape[1]
        hidden = masked_parts(batch.report_tokens(self.eos), shape, self.settings, generator)
        codes_hidden, words_hidden = (part.to(batch.text.device) for part in hidden)
        codes = torch.where(codes_hidden, self.vocab.n_image, batch.image)
        words = torch.where(words_hidden, self.vocab.n_text, batch.text)
        if step >= self.first_spliced:
            own = batch.text.cpu().chunk(self.datasets)
            wrong = torch.cat([spliced(reports, self.last_characters, self.eos, generator) for reports in own])
            wrong = torch.where(words_hidden, self.vocab.n_text, wrong.to(words.device))
            words = torch.cat([words, wrong])
        # One pass over all, so that BatchNorm sees both domains, and then squares of one dataset each
        whole = self.towers.similarities(codes, words)
        loss, right = contrast_within(whole, self.datasets)
        return loss, {"own_report_nearest": right, "scale": self.towers.log_scale.exp()}


@torch.no_grad()
def validation_scores(
    towers: nn.Module, val: Mapping[str, Tokens], num: int, tokenizer: TextTokenizer
) -> dict[str, float]:
    """`contrast_scores` of each dataset, on its first `num` pairs; in what share the own report beats its splice."""
    assert isinstance(towers, Towers)
    device, last_characters = towers.log_scale.device, tokenizer.last_characters()
    out: dict[str, float] = {}
    for name, tokens in val.items():
        batch = tokens.batch(np.arange(min(num, len(tokens))))
        generator = torch.Generator().manual_seed(0)
        wrong = spliced(batch.text, last_characters, tokenizer.eos_id, generator)
        logits = towers.similarities(batch.image.to(device), torch.cat([batch.text, wrong]).to(device))
        own, beside = logits.chunk(2, 1)
        right = (own.diagonal() > beside.diagonal()).float().mean()
        out |= contrast_scores(name, own) | {f"{name}/own_beats_spliced": float(right)}
    return out


def pretrain_towers(
    data: TokenData, settings: TowerSettings, training: TowerTraining, optim: Optimisation, *, seed: int, work: Path,
    out: Path, on_log: OnLog, device: torch.device,
) -> FitResult:  # fmt: skip
    """Train and write the folder `out`, which `train_medim` reads (averaged weights).

    Args:
        data: the training pairs; tokenizer and codebook must be those of `train_medim`.

    Raises:
        ValueError: a part of a batch is not the same number of pairs, at least two, of every dataset; or a dataset has
            one validation pair, which cannot be told from others.
    """
    datasets, part = len(data.train), optim.batch_size // optim.accumulate
    if part % datasets or part < 2 * datasets:
        raise ValueError(
            f"pretrain_towers.optim: a part of a batch must hold as many pairs of each of the {datasets} datasets, two "
            f"at least, got {part} (params.yaml)"
        )
    single = [name for name, tokens in data.val.items() if min(len(tokens), training.val_pairs) < 2]
    if single:
        raise ValueError(
            f"{single[0]} has fewer than two validation pairs: give it more (params.yaml:prepare_data.datasets, "
            f"pretrain_towers.training.val_pairs)"
        )
    torch.manual_seed(seed)
    tokenizer = TextTokenizer.load(data.tokenizer)
    vocab = SharedVocab(tokenizer.size, data.codebook_size)
    towers = Towers(vocab, data.layout(), settings)
    towers.picture.start_codes(data.codebook, torch.Generator().manual_seed(seed))
    towers = towers.to(device).train()
    result = fit(
        TowerTrainee(towers, vocab, tokenizer, training, datasets, optim.steps),
        balanced_batches(data.train, optim, seed), optim, seed=seed, work=work, name="pretrain_towers", on_log=on_log,
        validate=(lambda module, _: validation_scores(module, data.val, training.val_pairs, tokenizer))
        if data.val else None,
    )  # fmt: skip
    save_towers(result.averaged, settings, out)
    return result


def save_towers(towers: nn.Module | None, settings: TowerSettings | None, folder: Path) -> None:
    """Write config.json and model.safetensors; where there are no towers config.json says so and stands alone."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"towers": None if settings is None else asdict(settings)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if towers is not None:
        state = {name: value.contiguous() for name, value in towers.state_dict().items()}
        save_file(state, folder / "model.safetensors")
