"""Contrastive pretraining of a writer's picture encoder: which text of the batch belongs to which picture?

Symmetric cross-entropy over cosines with a learned scale, as CLIP (Radford et al. 2021, arXiv:2103.00020, Fig. 3): how
the encoders of BLIP, BLIP-2 and BiomedCLIP were trained before they wrote a report, and how MeDiM's towers are
(medim/tower_pretraining.py). Pictures are contrasted with texts of their own dataset only, since otherwise the domain
is most of the answer. A writer whose language model sees a picture through learned queries (BLLM's Q-Former) has those
compared as well, beside the patches, and their gradient ends at the picture encoder: BLIP-2's first stage (Li et al.
2023, arXiv:2301.12597, Sec. 3.1), but with one text encoder for both and all queries side by side, not the nearest one.
The text side is thrown away afterwards; what is kept is the writer, whose parts `SEEING` have learned and whose other
parts are as new.

Letters: B pairs of a batch, n patches of a picture, d features a patch, Q queries of D features, T tokens of a text.
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
            found = writer.contrasted(images)
        _, patches, features = found.patches.shape
        self.side = math.isqrt(patches)
        if self.side**2 != patches:
            raise ValueError(f"contrastive pretraining needs a square of patches, the encoder gives {patches}")
        self.writer = writer
        self.evidence = nn.Linear(features, settings.width)
        self.picture = nn.Linear((QUARTERS**2 + 1) * settings.width, settings.summary)
        self.text = TextSummary(writer.token_kinds, settings)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.queries = None if found.queries is None else nn.Linear(found.queries[0].numel(), settings.summary)

    def similarities(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        """`patches` and, where there are, `queries` -> (B, B) scaled cosines in float32: row i is picture i."""
        found = self.writer.contrasted(images)
        evidence = F.relu(self.evidence(found.patches))
        grid = evidence.transpose(1, 2).unflatten(2, (self.side, self.side))
        quarters = F.adaptive_max_pool2d(grid, QUARTERS).flatten(1)
        pictures = {"patches": self.picture(torch.cat([quarters, grid.mean((2, 3))], 1))}
        if self.queries is not None and found.queries is not None:
            pictures["queries"] = self.queries(found.queries.flatten(1))
        ids, there = (part.to(images.device) for part in self.writer.tokens(texts))
        written = F.normalize(self.text(ids, there).float(), dim=1)
        scale = self.log_scale.exp().clamp(max=MOST_SCALE)
        return {name: F.normalize(one.float(), dim=1) @ written.T * scale for name, one in pictures.items()}


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
        """See `Trainee`: the sum over what is compared; logs how often the own text is the nearest."""
        whole = self.module.similarities(batch.images.to(self.module.log_scale.device), batch.texts)
        found = {name: contrast_within(one, self.datasets) for name, one in whole.items()}
        total = torch.stack([loss for loss, _ in found.values()]).sum()
        return total, {_curve(part, "own_report_nearest"): right for part, (_, right) in found.items()}


def _curve(part: str, name: str) -> str:
    """Curves of the patches carry their plain name."""
    return name if part == "patches" else f"{part}/{name}"


@torch.no_grad()
def validation_contrast(module: ContrastedWriter, val: Mapping[str, tuple[Tensor, Sequence[str]]]) -> dict[str, float]:
    """`contrast_scores` of each dataset, on its validation pairs."""
    out: dict[str, float] = {}
    for name, (images, texts) in val.items():
        for part, one in module.similarities(images.to(module.log_scale.device), texts).items():
            out |= contrast_scores(_curve(part, name), one)
    return out
