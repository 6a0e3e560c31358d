"""Convolutions on the grid of codes in front of the decoder: what is near counts together from the first step on.

A decoder of billions of parameters, pretrained on pictures, reads codes one by one; a small one spends most of its
training on finding out that neighbours on the grid belong together. Early convolutions are the known remedy (Xiao et
al. 2021, arXiv:2106.14881): residual blocks of two 3 x 3 convolutions over the embeddings of the picture's positions,
[MASK] embedded like any code. Every code is still masked, predicted and committed on its own. No blocks at all is the
paper's, and what real checkpoints were trained with.

The prior is autoregressive: where it predicts codes, a kernel sees only what stands before in raster order, as in
PixelCNN (van den Oord et al. 2016). The denoiser has no such masks, as its attention has no causal mask (`causal: true`
keeps both).

Letters: B batch, S positions of a picture in the decoder, D width, C channels inside a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, rms_norm, silu

BEFORE = ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0))  # taps of a 3 x 3 kernel that stand not after its centre


class StemBlock(nn.Module):
    """conv(silu(norm(conv(norm(x))))), norms per position, so that nothing passes between positions but by taps."""

    before: Tensor

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(width, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels, width, 3, padding=1)
        for conv in (self.widen, self.narrow):
            nn.init.normal_(conv.weight, std=(9 * conv.in_channels) ** -0.5)  # keeps the scale
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        self.register_buffer("before", torch.tensor(BEFORE), persistent=False)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, D, side, side) -> the same shape, without x itself."""
        h = self._conv(_norm(x), self.widen, causal)
        return self._conv(silu(_norm(h)), self.narrow, causal)

    def _conv(self, x: Tensor, conv: nn.Conv2d, causal: bool) -> Tensor:
        return conv2d(x, conv.weight * self.before if causal else conv.weight, conv.bias, padding=1)


class CodeStem(nn.Module):
    """Residual blocks over a picture's embeddings.

    Args:
        positions: S, a square.
        width: D.
        blocks: how many; C is D / 2.
        scale: of the embeddings at the start (their standard deviation): blocks begin about as loud.

    Raises:
        ValueError: S is no square.
    """

    def __init__(self, positions: int, width: int, blocks: int, scale: float) -> None:
        super().__init__()
        self.side, self.scale = math.isqrt(positions), scale
        if self.side**2 != positions:
            raise ValueError(
                f"code_stem needs a square of positions, got {positions} (params.yaml:train_medim.settings.backbone)"
            )
        self.blocks = nn.ModuleList(StemBlock(width, max(1, width // 2)) for _ in range(blocks))

    def forward(self, x: Tensor, causal: Tensor | None = None) -> Tensor:
        """(B, S, D) embeddings -> the same shape.

        Args:
            causal: (B,) bool, samples whose positions may see only those before them; None: none of them.
        """
        if causal is None:
            return self._blocks(x, causal=False)
        order = torch.cat([causal.nonzero(), (~causal).nonzero()])[:, 0]
        some, others = x[order].split([int(causal.sum()), int((~causal).sum())])
        parts = [self._blocks(part, causal=c) for part, c in ((some, True), (others, False)) if len(part)]
        return torch.cat(parts)[order.argsort()]

    def _blocks(self, x: Tensor, *, causal: bool) -> Tensor:
        grid = x.transpose(1, 2).unflatten(2, (self.side, self.side))
        for block in self.blocks:
            grid = grid + self.scale * block(grid, causal)
        return grid.flatten(2).transpose(1, 2)


def _norm(x: Tensor) -> Tensor:
    """Root mean square 1 at every position of (B, D, side, side); a convolution follows, so there are no weights."""
    return rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)
