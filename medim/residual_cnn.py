"""Parts of convolutional networks that look for small things wherever they lie and know left from right.

Shared by the finding reader, which judges pictures, and by the picture tower, which sees codes; they share no weights.
Sources: residual blocks as in He et al. 2016 (arXiv:1512.03385), coordinate channels as in Liu et al. 2018 (CoordConv,
arXiv:1807.03247).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip, (B, C, H, W) -> (B, width, H / stride, W / stride).

    BatchNorm, not GroupNorm: a norm within one picture would wipe out the contrast that tells faint from clear.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        same = channels == width and stride == 1
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        hidden = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.skip(x) + self.norms[1](self.second(hidden)))


def with_place(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C + 2, H, W): row and column of each place, from -1 to 1."""
    rows, columns = (torch.linspace(-1, 1, length, device=x.device, dtype=x.dtype) for length in x.shape[2:])
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([x, place.expand(len(x), -1, -1, -1)], 1)


def side_maxima(x: Tensor) -> list[Tensor]:
    """(B, C, H, W) -> maxima (B, C) over the left half, the right half and all; a column in the middle is left's.

    The maximum finds a small thing wherever it lies, the halves keep sides apart.
    """
    left, right = (half.amax((2, 3)) for half in x.tensor_split(2, dim=3))
    return [left, right, torch.maximum(left, right)]
