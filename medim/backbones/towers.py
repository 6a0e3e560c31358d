"""Two small encoders, of a picture's codes and of a report, that say the same of what belongs together.

A multimodal LLM of billions of parameters has seen pictures with their words before it is made a denoiser. One of a few
million, trained on masked words and codes alone, does not begin to look within a CPU's hour: most of what a masked word
costs is wording, which no picture decides (docs/study.md, "Looking first"). Telling a pair's own report from others is
the question that wording does not blur, which is why contrastive training needs an order of magnitude fewer pairs than
predicting captions does (CLIP, Radford et al. 2021, arXiv:2103.00020, Sec. 2.3 and Fig. 2). Both encoders are trained
so (medim.tower_pretraining), on the training pairs, and then stand beside the decoder's embedding:

    each position of the picture   + what the picture tower saw there + the report tower's summary of the report
    each token of the report       + what the report tower read there + the most and the mean of what the picture tower
                                     saw, in each half of the picture and in all of it

through linear maps that start at 0, so that the decoder starts as its prior. [MASK] is a code and a word of its own to
them: what is masked is not seen. The towers stand still while the denoiser is trained (as in LiT, Zhai et al. 2021,
arXiv:2111.07991): its gradient, mostly of wording, undoes what they have learned. What is read at each token comes from
a copy of the report tower that learns on, since its convolutions help with wording as well. Not in the paper, and
nothing where `towers: null`.

Letters: B batch, n codes of a picture, T report tokens, S positions of the decoder, D its width, E evidence channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medim.backbones.code_rows import set_code_rows
from medim.residual_cnn import ResidualBlock, side_maxima, with_place
from medim.vocab import SequenceLayout, SharedVocab

FIRST_SCALE = 1 / 0.07  # of cosines, learned (CLIP)
MOST_SCALE = 100.0
REPORT_KERNEL = 5  # tokens a convolution of the report tower sees


@dataclass(frozen=True)
class TowerSettings:
    """Sizes of both towers; the values stand in params.yaml."""

    code_width: int  # of a code's embedding
    channels: int  # of the picture tower on the grid of codes; twice as many on the grid of half the side
    blocks: int  # residual blocks on each of the two grids
    evidence: int  # channels of what the picture tower saw at a place
    report_width: int  # channels of the report tower
    report_blocks: int
    summary: int  # numbers of a picture's or report's summary, and of the space where they are compared

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: names one that is not positive.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"towers.{name} must be at least 1, got {value} (params.yaml)")


def tower_settings(value: TowerSettings | Mapping[str, Any] | None) -> TowerSettings | None:
    """Settings as params.yaml or a saved config.json hold them."""
    return TowerSettings(**value) if isinstance(value, Mapping) else value


class PictureTower(nn.Module):
    """Residual CNN over the grid of codes; code `codebook_size` is [MASK]."""

    def __init__(self, codebook_size: int, n_codes: int, settings: TowerSettings) -> None:
        super().__init__()
        self.side, width = math.isqrt(n_codes), settings.channels
        if self.side**2 != n_codes:
            raise ValueError(f"towers need a square of codes, got {n_codes} (params.yaml: set towers: null)")
        self.embed = nn.Embedding(codebook_size + 1, settings.code_width)
        self.stem = nn.Sequential(
            nn.Conv2d(settings.code_width + 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, width, 1) for _ in range(settings.blocks)),
            ResidualBlock(width, 2 * width, 2),
            *(ResidualBlock(2 * width, 2 * width, 1) for _ in range(settings.blocks)),
        )
        self.evidence = nn.Conv2d(2 * width + 2, settings.evidence, 1)
        self.pooled = 4 * settings.evidence  # numbers of `pool`
        self.project = nn.Linear(self.pooled, settings.summary)
        self.to(memory_format=torch.channels_last)

    def start_codes(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Set the first embeddings to a projection of the VQGAN's codebook (n, d), [MASK]'s to 0."""
        set_code_rows(self.embed.weight[:-1], codebook, generator)
        nn.init.zeros_(self.embed.weight[-1])

    def forward(self, codes: Tensor) -> Tensor:
        """(B, n) -> evidence (B, E, side / 2, side / 2), not negative."""
        grid = self.embed(codes).unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        grid = with_place(grid).contiguous(memory_format=torch.channels_last)
        return F.relu(self.evidence(with_place(self.blocks(self.stem(grid)))))

    def pool(self, evidence: Tensor) -> Tensor:
        """(B, 4 E): maxima of the evidence over its left half, its right half and all of it, then the mean."""
        return torch.cat([*side_maxima(evidence), evidence.mean((2, 3))], 1)

    def summary(self, codes: Tensor) -> Tensor:
        """(B, n) -> (B, summary), not negative."""
        return F.relu(self.project(self.pool(self(codes))))


class WordConvolutions(nn.Module):
    """Residual convolutions over a report's tokens; token `n_text` is [MASK]."""

    def __init__(self, n_text: int, settings: TowerSettings) -> None:
        super().__init__()
        width = settings.report_width
        self.embed = nn.Embedding(n_text + 1, width)
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.zeros_(self.embed.weight[-1])
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, REPORT_KERNEL, padding=REPORT_KERNEL // 2) for _ in range(settings.report_blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(settings.report_blocks))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, report_width)."""
        x: Tensor = self.embed(ids)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.silu(norm(conv(x.transpose(1, 2)).transpose(1, 2)))
        return x


class ReportTower(nn.Module):
    """What stands at a report's tokens, pooled."""

    def __init__(self, n_text: int, settings: TowerSettings) -> None:
        super().__init__()
        self.words = WordConvolutions(n_text, settings)
        self.project = nn.Linear(2 * settings.report_width, settings.summary)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> summary (B, summary)."""
        x = self.words(ids)
        summary: Tensor = self.project(torch.cat([x.amax(1), x.mean(1)], 1))
        return summary


class Towers(nn.Module):
    """Both towers and what compares them."""

    def __init__(self, vocab: SharedVocab, layout: SequenceLayout, settings: TowerSettings) -> None:
        super().__init__()
        self.picture = PictureTower(vocab.n_image, layout.n_image, settings)
        self.report = ReportTower(vocab.n_text, settings)
        self.picture_head = nn.Linear(settings.summary, settings.summary)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def picture_directions(self, codes: Tensor) -> Tensor:
        """(B, summary) unit vectors of pictures in float32."""
        return F.normalize(self.picture_head(self.picture.summary(codes)).float(), dim=1)

    def report_directions(self, ids: Tensor) -> Tensor:
        """(B, summary) unit vectors of reports in float32."""
        return F.normalize(self.report(ids).float(), dim=1)

    def directions(self, codes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, summary) unit vectors of pictures and of reports; their products are cosines."""
        return self.picture_directions(codes), self.report_directions(ids)

    def scale(self) -> Tensor:
        """What cosines are multiplied by, learned."""
        return self.log_scale.exp().clamp(max=MOST_SCALE)

    def similarities(self, codes: Tensor, ids: Tensor) -> Tensor:
        """(B, R) scaled cosines in float32 of B pictures and R reports: row i is picture i against every report."""
        pictures, reports = self.directions(codes, ids)
        return pictures @ reports.T * self.scale()


class TowerInputs(nn.Module):
    """Towers beside a decoder's embedding; see the head of this file."""

    def __init__(
        self, vocab: SharedVocab, layout: SequenceLayout, short: SequenceLayout, width: int, settings: TowerSettings
    ) -> None:
        """`layout` of the tokens, `short` of the decoder's positions, `width` D."""
        super().__init__()
        self.vocab, self.layout, self.short = vocab, layout, short
        self.towers = Towers(vocab, layout, settings).requires_grad_(False)
        self.words = WordConvolutions(vocab.n_text, settings)
        self.copy_words()
        self.maps = nn.ModuleDict({
            "picture": nn.Linear(settings.evidence, width),
            "picture_pooled": nn.Linear(self.towers.picture.pooled, width),
            "report": nn.Linear(settings.report_width, width), "report_summary": nn.Linear(settings.summary, width),
        })  # fmt: skip
        for parameter in self.maps.parameters():
            nn.init.zeros_(parameter)

    def copy_words(self) -> None:
        """Start the words that learn where the report tower's are."""
        self.words.load_state_dict(self.towers.report.words.state_dict())

    def train(self, mode: bool = True) -> TowerInputs:
        """As usual, but that the towers keep the BatchNorm statistics of their own training."""
        super().train(mode)
        self.towers.eval()
        return self

    def _own_ids(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, n) and words (B, T) of shared ids, with the towers' own [MASK]."""
        text, image = ids[:, self.layout.text], ids[:, self.layout.image]
        return self.vocab.to_masked_codes(image), torch.where(text == self.vocab.mask_id, self.vocab.n_text, text)

    @torch.no_grad()
    def agreement(self, ids: Tensor) -> Tensor:
        """(B,) cosine in [-1, 1] between the picture and the report of each finished pair of shared ids (B, L)."""
        pictures, reports = self.towers.directions(*self._own_ids(ids))
        return (pictures * reports).sum(1)

    @torch.no_grad()
    def log_odds(self, ids: Tensor) -> Tensor:
        """(M, B) scaled cosines of M versions (M, B, L) of B pairs, [MASK] allowed: see `medim.diffusion.value.Value`.

        They are what the towers were trained to put into a softmax over the reports of a batch, so up to a number that
        all versions share they estimate log p(report | picture) - log p(report) in nats (Oord et al. 2018, Sec. 2.3).
        A half that is the same in all versions is looked at once.
        """
        parts = (part.unflatten(0, ids.shape[:2]) for part in self._own_ids(ids.flatten(0, 1)))
        codes, words = (part[:1] if bool((part == part[:1]).all()) else part for part in parts)
        pictures, reports = (
            self.towers.picture_directions(codes.flatten(0, 1)),
            self.towers.report_directions(words.flatten(0, 1)),
        )
        cosines = (pictures.unflatten(0, codes.shape[:2]) * reports.unflatten(0, words.shape[:2])).sum(-1)
        return (cosines * self.towers.scale()).expand(ids.shape[:2])

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) shared ids -> (B, S, D), to be added to the embeddings of the decoder's positions."""
        codes, words = self._own_ids(ids)
        with torch.no_grad():
            evidence = self.towers.picture(codes)
            pooled = self.towers.picture.pool(evidence)
            read = self.towers.report(words)
        side = math.isqrt(self.short.n_image)
        cells = evidence if evidence.shape[-1] == side else F.interpolate(evidence, (side, side))
        picture = self.maps["picture"](cells.flatten(2).transpose(1, 2)) + self.maps["report_summary"](read)[:, None]
        report = self.maps["report"](self.words(words)) + self.maps["picture_pooled"](pooled)[:, None]
        edge = torch.zeros_like(report[:, :1])  # BOI, EOI
        return torch.cat([edge, picture, edge, report], dim=1)
