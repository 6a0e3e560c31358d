"""Contrastive training of the towers: which report of the batch belongs to which picture?

Symmetric cross-entropy over cosines with a learned scale, as CLIP (Radford et al. 2021, arXiv:2103.00020, Fig. 3). What
differs: pictures are contrasted with reports of their own dataset only, since otherwise the domain is most of the
answer; and a share of the samples has a part of its codes and words masked, each side at a rate of its own, because the
denoiser will show the towers half-finished pairs (masking as in FLIP, Li et al. 2022, arXiv:2212.00794, which drops
patches for speed). Pairs whose reports are equal to the letter count as wrong answers to each other, as in CLIP.

Letters: B pairs of a batch, n codes of a picture, T report tokens.
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
from medim.tokenizers.text import TextTokenizer
from medim.training import FitResult, OnLog, Optimisation, fit
from medim.vocab import SharedVocab


@dataclass(frozen=True)
class TowerTraining:
    """How towers are trained; the values stand in params.yaml."""

    masked: float  # share of samples of which a part is masked
    val_pairs: int  # validation pairs a dataset

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            ValueError: it lies outside [0, 1].
        """
        if not 0 <= self.masked <= 1:
            raise ValueError(f"pretrain_towers.masked must lie in [0, 1], got {self.masked} (params.yaml)")


def mask_some(ids: Tensor, mask: int, share: float, generator: torch.Generator) -> Tensor:
    """(B, K) ids of which a share of the rows has a part masked, at rates uniform in [0, 1].

    Args:
        ids: codes or report tokens.
        mask: the id that stands for [MASK].
        share: of the rows.
        generator: on the CPU.
    """
    chosen = torch.rand(len(ids), 1, generator=generator) < share
    rate = torch.rand(len(ids), 1, generator=generator)
    drawn = torch.rand(ids.shape, generator=generator)
    return torch.where((chosen & (drawn < rate)).to(ids.device), mask, ids)


def contrastive_nats(similarities: Tensor) -> Tensor:
    """Mean nats of finding the report of a picture and the picture of a report among B, from (B, B) logits."""
    own = torch.arange(len(similarities), device=similarities.device)
    return (cross_entropy(similarities, own) + cross_entropy(similarities.T, own)) / 2


def contrast_within(whole: Tensor, datasets: int) -> tuple[Tensor, Tensor]:
    """`contrastive_nats` of each dataset's own square of (B, B) logits, averaged; how often the own report is nearest.

    Args:
        whole: pairs of one dataset after those of another, as many of each.
        datasets: their number.
    """
    size = len(whole) // datasets
    squares = [whole[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(datasets)]
    right = torch.cat([square.argmax(1) == torch.arange(size, device=square.device) for square in squares])
    return torch.stack([contrastive_nats(square) for square in squares]).mean(), right.float().mean()


def contrast_scores(name: str, similarities: Tensor) -> dict[str, float]:
    """Of a dataset's validation pairs: nats, the share of pictures whose own report is nearest, and chance."""
    nats, right = contrast_within(similarities, 1)
    return {
        f"{name}/nats": float(nats), f"{name}/own_report_nearest": float(right), f"{name}/chance": 1 / len(similarities)
    }  # fmt: skip


class TowerTrainee:
    """The towers as `fit` sees them: one player."""

    def __init__(self, towers: Towers, vocab: SharedVocab, settings: TowerTraining, datasets: int) -> None:
        """`datasets`: of how many a batch holds an equal number of pairs each, one dataset after the other."""
        self.towers, self.vocab, self.settings, self.datasets = towers, vocab, settings, datasets

    def players(self) -> dict[str, nn.Module]:
        """See `Trainee`."""
        return {"towers": self.towers}

    def loss(
        self, _player: str, batch: TokenBatch, _step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Trainee`; logs the nats, the scale and how often the own report is the nearest."""
        batch = batch.to(self.towers.log_scale.device)
        share = self.settings.masked
        codes = mask_some(batch.image, self.vocab.n_image, share, generator)
        words = mask_some(batch.text, self.vocab.n_text, share, generator)
        # One pass over all, so that BatchNorm sees both domains, and then squares of one dataset each
        whole = self.towers.similarities(codes, words)
        loss, right = contrast_within(whole, self.datasets)
        return loss, {"own_report_nearest": right, "scale": self.towers.log_scale.exp()}


@torch.no_grad()
def validation_scores(towers: nn.Module, val: Mapping[str, Tokens], num: int) -> dict[str, float]:
    """`contrast_scores` of each dataset, on its first `num` pairs."""
    assert isinstance(towers, Towers)
    device = towers.log_scale.device
    out: dict[str, float] = {}
    for name, tokens in val.items():
        batch = tokens.batch(np.arange(min(num, len(tokens)))).to(device)
        out |= contrast_scores(name, towers.similarities(batch.image, batch.text))
    return out


def pretrain_towers(
    data: TokenData, settings: TowerSettings, training: TowerTraining, optim: Optimisation, *, seed: int, work: Path,
    out: Path, on_log: OnLog, device: torch.device,
) -> FitResult:  # fmt: skip
    """Train and write the folder `out`, which `train_medim` reads (averaged weights).

    Args:
        data: the training pairs; tokenizer and codebook must be those of `train_medim`.

    Raises:
        ValueError: a part of a batch is not the same number of pairs, at least two, of every dataset.
    """
    datasets, part = len(data.train), optim.batch_size // optim.accumulate
    if part % datasets or part < 2 * datasets:
        raise ValueError(
            f"pretrain_towers.optim: a part of a batch must hold as many pairs of each of the {datasets} datasets, two "
            f"at least, got {part} (params.yaml)"
        )
    torch.manual_seed(seed)
    vocab = SharedVocab(TextTokenizer.load(data.tokenizer).size, data.codebook_size)
    towers = Towers(vocab, data.layout(), settings)
    towers.picture.start_codes(data.codebook, torch.Generator().manual_seed(seed))
    towers = towers.to(device).train()
    result = fit(
        TowerTrainee(towers, vocab, training, datasets), balanced_batches(data.train, optim, seed), optim, seed=seed,
        work=work, name="pretrain_towers", on_log=on_log,
        validate=(lambda module, _: validation_scores(module, data.val, training.val_pairs)) if data.val else None,
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
