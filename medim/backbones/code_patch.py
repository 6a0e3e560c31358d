"""Several codes in one position of the decoder: a picture of n codes takes n / p² positions.

A VQGAN of factor 4 keeps small findings and gives 256 codes for 64 pixels; one position a code makes a picture three
times as long as its report, and most of the time is spent there. As in DiT (Peebles & Xie 2022, Sec. 3.2 "Patchify")
p x p neighbours share a position: their embeddings are joined by one matrix each, and the position's last hidden state
is split by another for each. The diffusion does not see it: every code is masked, predicted and committed on its own.
p = 1, no matrices at all, is the paper's and what real checkpoints were trained with.

Letters: B batch, L positions of the layout, S positions of the decoder, n codes, D width, p side of a patch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medim.vocab import SequenceLayout


def short_layout(layout: SequenceLayout, patch: int) -> SequenceLayout:
    """Where things stand in the decoder.

    Raises:
        ValueError: the codes are no square of whole patches.
    """
    side = math.isqrt(layout.n_image)
    if patch > 1 and (side * side != layout.n_image or side % patch):
        raise ValueError(
            f"code_patch {patch} needs a square of codes whose side is a multiple of it, got {layout.n_image} codes "
            f"(params.yaml:train_medim.settings.backbone)"
        )
    return SequenceLayout(layout.n_text, layout.n_image // patch**2)


class CodePatch(nn.Module):
    """Joins and splits patches of p > 1. Both matrices start as independent draws that keep the scale."""

    raster: Tensor
    patched: Tensor

    def __init__(self, layout: SequenceLayout, patch: int, width: int) -> None:
        super().__init__()
        self.layout, self.short, self.members = layout, short_layout(layout, patch), patch**2
        side = math.isqrt(layout.n_image) // patch
        index = torch.arange(layout.n_image).view(side, patch, side, patch).permute(0, 2, 1, 3).flatten()
        self.register_buffer("raster", index, persistent=False)  # (n,) raster position of patch member i
        self.register_buffer("patched", index.argsort(), persistent=False)  # the inverse
        self.join = nn.Linear(self.members * width, width, bias=False)
        self.split = nn.Linear(width, self.members * width, bias=False)
        nn.init.normal_(self.join.weight, std=(self.members * width) ** -0.5)
        nn.init.normal_(self.split.weight, std=width**-0.5)

    def shorten(self, embeddings: Tensor) -> Tensor:
        """(B, L, D) of tokens -> (B, S, D) of the decoder's positions."""
        before, codes, after = around_picture(embeddings, self.layout)
        patches = codes[:, self.raster].unflatten(1, (-1, self.members)).flatten(2)
        return torch.cat([before, self.join(patches), after], dim=1)

    def lengthen(self, hidden: Tensor) -> Tensor:
        """(B, S, D) hidden states -> (B, L, D), one per token."""
        before, patches, after = around_picture(hidden, self.short)
        codes = self.split(patches).unflatten(2, (self.members, -1)).flatten(1, 2)[:, self.patched]
        return torch.cat([before, codes, after], dim=1)


def around_picture(x: Tensor, layout: SequenceLayout) -> tuple[Tensor, Tensor, Tensor]:
    """What stands before, in and after the picture's positions of (B, L, D).

    One split instead of three slices: the gradient of each slice is a tensor of zeros of the whole length.
    """
    image = layout.image
    before, picture, after = x.split([image.start, image.stop - image.start, x.shape[1] - image.stop], dim=1)
    return before, picture, after
