"""A residual CNN over the grid of codes beside the head: what a code owes to its nearest neighbours.

Where codes share a position of the decoder (`code_patch`), several of them must be told from one hidden state, and what
stands next to each has passed through matrices of whole patches. A small network learns little of it so: where half of
the codes or more are known, a CNN of half a million weights that sees nothing else tells the others better after
minutes than the denoiser does after its whole training, by 0.3 to 0.6 nats each (docs/study.md, "What a code owes to
its neighbours"). So the decoder stays on the coarse grid, and convolutions on the fine one stand beside its head, as
around the transformer of Hoogeboom et al. 2023 (arXiv:2301.11093, "simple diffusion"):

    x = embedding of the code ([MASK] has one of its own) + place + a(hidden state of the code)
    x = x + conv(silu(norm(conv(silu(norm(x))))))          some times, 3 x 3, as in Esser et al. 2021
    logits of the code = the decoder's + head(norm(x))

a, the second convolution of each block and the head start at 0: the network starts as its prior. Not in the paper, and
nothing where `code_refiner: null`.

Letters: B batch, n codes of a picture, N wanted ones in the batch, D width of the decoder, C channels here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from medim.backbones.code_rows import set_code_rows

GROUPS = 8  # of each GroupNorm


@dataclass(frozen=True)
class RefinerSettings:
    """Its size; the values stand in params.yaml."""

    channels: int  # a multiple of GROUPS
    blocks: int  # residual blocks of two convolutions

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: names one that is not positive, or channels that cannot be cut into groups.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"code_refiner.{name} must be at least 1, got {value} (params.yaml)")
        if self.channels % GROUPS:
            raise ValueError(f"code_refiner.channels must be a multiple of {GROUPS}, got {self.channels} (params.yaml)")


def refiner_settings(value: RefinerSettings | Mapping[str, Any] | None) -> RefinerSettings | None:
    """Settings as params.yaml or a saved config.json hold them."""
    return RefinerSettings(**value) if isinstance(value, Mapping) else value


class RefinerBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); starts as x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, side, side) -> the same shape."""
        h = self.conv1(silu(self.norm1(x)))
        return x + self.conv2(silu(self.norm2(h)))


class CodeRefiner(nn.Module):
    """Logits of codes from the codes around them; code `codebook_size` is [MASK].

    Args:
        codebook_size: codes there are.
        n_codes: n, a square.
        width: D.
        settings: C and the number of blocks.

    Raises:
        ValueError: n is no square.
    """

    def __init__(self, codebook_size: int, n_codes: int, width: int, settings: RefinerSettings) -> None:
        super().__init__()
        self.side, channels = math.isqrt(n_codes), settings.channels
        if self.side**2 != n_codes:
            raise ValueError(f"code_refiner needs a square of codes, got {n_codes} (params.yaml: set it to null)")
        self.embed = nn.Embedding(codebook_size + 1, channels)
        self.place = nn.Parameter(torch.zeros(channels, self.side, self.side))
        self.of_hidden = nn.Linear(width, channels)
        self.blocks = nn.Sequential(*(RefinerBlock(channels) for _ in range(settings.blocks)))
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.head = nn.Linear(channels, codebook_size)
        for linear in (self.of_hidden, self.head):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def start_codes(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Set the first embeddings to a projection of the VQGAN's codebook (codebook_size, d)."""
        set_code_rows(self.embed.weight[:-1], codebook, generator)

    def forward(self, codes: Tensor, hidden: Tensor, wanted: Tensor) -> Tensor:
        """(N, codebook_size) logits to be added to the decoder's.

        Args:
            codes: (B, n) int64.
            hidden: (B, n, D) hidden states of codes.
            wanted: (B, n) bool, N of them.
        """
        x = (self.embed(codes) + self.of_hidden(hidden)).transpose(1, 2).unflatten(2, (self.side, self.side))
        x = self.norm(self.blocks(x + self.place)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(x[wanted])
        return logits
