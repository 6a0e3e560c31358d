"""Contrastive pretraining of a writer's picture encoder: which text of the batch belongs to which picture?

Symmetric cross-entropy over cosines with a learned scale, as CLIP (Radford et al. 2021, arXiv:2103.00020, Fig. 3): how
the encoders of BLIP, BLIP-2 and BiomedCLIP were trained before they wrote a report, and how MeDiM's towers are
(medim/tower_pretraining.py). Pictures are contrasted with texts of their own dataset only, since otherwise the domain
is most of the answer. The text side is thrown away afterwards; what is kept is the writer, whose picture encoder has
learned and whose other parts are as new.

Letters: B pairs of a batch, n patches of a picture, d features a patch, T tokens of a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medim.baselines.pretraining import Contrast
from medim.baselines.report_writer import ReportWriter, WriterBatch
from medim.tower_pretraining import contrast_scores, contrast_within

FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # of the cosines, as in CLIP
QUARTERS = 2  # a side; a finding counts where it is, for reports name sides and heights


class TextSummary(nn.Module):
    """Embedding and residual convolutions over the tokens, pooled by maximum and mean."""

    def __init__(self, tokens: int, settings: Contrast) -> None:
        super().__init__()
        width = settings.width
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(settings.blocks))
        self.project = nn.Linear(2 * width, settings.summary)

    def forward(self, ids: Tensor, there: Tensor) -> Tensor:
        """(B, T) ids and which of them are no padding -> (B, summary)."""
        keep = there[:, None].to(self.embed.weight.dtype)
        x = self.embed(ids).transpose(1, 2) * keep
        for block in self.blocks:
            x = (x + F.relu(block(x))) * keep
        most = x.masked_fill(~there[:, None], -math.inf).amax(2)
        summary: Tensor = self.project(torch.cat([most, x.sum(2) / keep.sum(2)], 1))
        return summary


class ContrastedWriter(nn.Module):
    """A writer, and what compares its pictures with texts."""

    def __init__(self, writer: ReportWriter, images: Tensor, settings: Contrast) -> None:
        """`images`: (B, 3, S, S) of the size that will come, from which the patches and their features are counted."""
        super().__init__()
        with torch.no_grad():
            _, patches, features = writer.patches(images).shape
        self.side = math.isqrt(patches)
        if self.side**2 != patches:
            raise ValueError(f"contrastive pretraining needs a square of patches, the encoder gives {patches}")
        self.writer = writer
        self.evidence = nn.Linear(features, settings.width)
        self.picture = nn.Linear((QUARTERS**2 + 1) * settings.width, settings.summary)
        self.text = TextSummary(writer.token_kinds, settings)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def similarities(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(B, B) scaled cosines in float32: row i is picture i against every text."""
        evidence = F.relu(self.evidence(self.writer.patches(images)))
        grid = evidence.transpose(1, 2).unflatten(2, (self.side, self.side))
        quarters = F.adaptive_max_pool2d(grid, QUARTERS).flatten(1)
        pictures = self.picture(torch.cat([quarters, grid.mean((2, 3))], 1))
        ids, there = (part.to(images.device) for part in self.writer.tokens(texts))
        first, second = (F.normalize(side.float(), dim=1) for side in (pictures, self.text(ids, there)))
        return first @ second.T * self.log_scale.exp().clamp(max=MOST_SCALE)


class ContrastTrainee:
    """A contrasted writer as `fit` sees it: one player."""

    def __init__(self, module: ContrastedWriter, datasets: int) -> None:
        """`datasets`: of how many a batch holds an equal number of pairs each, one dataset after the other."""
        self.module, self.datasets = module, datasets

    def players(self) -> dict[str, nn.Module]:
        """See `Trainee`."""
        return {"contrast": self.module}

    def loss(
        self, _player: str, batch: WriterBatch, _step: int, _generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Trainee`; logs how often the own text is the nearest."""
        whole = self.module.similarities(batch.images.to(self.module.log_scale.device), batch.texts)
        loss, right = contrast_within(whole, self.datasets)
        return loss, {"own_report_nearest": right}


@torch.no_grad()
def validation_contrast(module: ContrastedWriter, val: Mapping[str, tuple[Tensor, Sequence[str]]]) -> dict[str, float]:
    """`contrast_scores` of each dataset, on its validation pairs."""
    out: dict[str, float] = {}
    for name, (images, texts) in val.items():
        out |= contrast_scores(name, module.similarities(images.to(module.log_scale.device), texts))
    return out
