"""Where a token stands, for the rotary embedding: in one line, or pictures on their grid.

A pretrained decoder has rotary positions 0, 1, 2, … over the whole sequence; two codes above one another are then a row
apart, which a small network has to learn from scratch. `grid` gives each token three coordinates, as Qwen2-VL's M-RoPE
does (Wang et al. 2024, arXiv:2409.12191, Sec. 2.1): (p, p, p) for report tokens, BOI and EOI, and (p0, p0 + row,
p0 + column) for codes, p0 the position after BOI; what follows the picture goes on at p0 + side. The frequencies are
dealt to the coordinates in turn, so that each has fast and slow ones (Qwen3-VL's interleaving; Qwen2-VL cuts them into
three blocks, which leaves columns no fast ones).

Letters: B batch, L positions of a sequence, C channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from medim.vocab import SequenceLayout

POSITIONS = ("flat", "grid")


def grid_coordinates(layout: SequenceLayout, picture_first: bool) -> Tensor:
    """(L, 3) float32 coordinates of BOI | picture | EOI | report, or of report | BOI | picture | EOI.

    Raises:
        ValueError: the codes are no square.
    """
    side = math.isqrt(layout.n_image)
    if side * side != layout.n_image:
        raise ValueError(f"positions: grid needs a square of codes, got {layout.n_image}: use flat (params.yaml)")

    def line(first: int, num: int) -> Tensor:
        return torch.arange(first, first + num).float()[:, None].expand(num, 3)

    def picture(boi: int) -> Tensor:
        rows = torch.arange(side).float().repeat_interleave(side)
        columns = torch.arange(side).float().repeat(side)
        codes = (boi + 1) + torch.stack([torch.zeros_like(rows), rows, columns], dim=1)
        return torch.cat([line(boi, 1), codes, line(boi + 1 + side, 1)])

    if picture_first:
        return torch.cat([picture(0), line(side + 2, layout.n_text)])
    return torch.cat([line(0, layout.n_text), picture(layout.n_text)])


class GridRotary(nn.Module):
    """Takes the place of a decoder's `rotary_emb`: position ids 0 … L - 1 mean the picture-first order of the layout,
    L … 2 L - 1 the report-first order. Frequencies and scaling are the decoder's own."""

    def __init__(self, rotary: Any, layout: SequenceLayout) -> None:
        super().__init__()
        self.scaling = float(rotary.attention_scaling)
        coordinates = torch.cat([grid_coordinates(layout, picture_first=first) for first in (True, False)])
        frequencies = rotary.inv_freq.float()  # (C / 2,)
        axis = torch.arange(len(frequencies)) % 3
        self.angles: Tensor
        self.register_buffer("angles", coordinates[:, axis] * frequencies, persistent=False)  # (2 L, C / 2)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, L, C) in x's type, as transformers' rotary embeddings return them."""
        angles = self.angles[position_ids]
        doubled = torch.cat([angles, angles], dim=-1)
        return (doubled.cos() * self.scaling).to(x.dtype), (doubled.sin() * self.scaling).to(x.dtype)


def position_ids(layout: SequenceLayout, report_first: Tensor) -> Tensor:
    """(B, L) int64 ids for `GridRotary` of samples whose report stands first (B,) bool, or does not."""
    return torch.arange(layout.length, device=report_first.device) + layout.length * report_first.long()[:, None]
