"""Which of several draws of a step is taken, where something knows how well picture and report agree.

Soft value-based decoding (SVDD-PM, Li et al. 2024, arXiv:2408.08252, Alg. 1): at each evaluation M draws are made of
the tokens that it fills, and one is taken with probability proportional to exp(w v(x)), v the value of the tokens that
would then stand, masked ones included. With many draws that is the network's step tilted by exp(w v); the cost is M
values, not M evaluations. There v is the expected reward of the end; here it is told by the caller for tokens that are
partly masked. The value is asked only while exactly one half is whole: where both have [MASK], nothing can agree yet.

Shapes: M draws, b samples, L tokens.
"""

from typing import Protocol

import torch
from torch import Tensor

from medim.diffusion.space import TokenSpace


class Value(Protocol):
    """How well the halves of pairs agree."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """(M, b) in nats, the higher the better, of shared ids (M, b, L) that may hold [MASK]; -inf is not allowed."""
        ...


def one_half_is_whole(x: Tensor, space: TokenSpace) -> Tensor:
    """(b,) bool: report or picture of x (b, L) has [MASK], not both."""
    masked = x == space.mask_id
    report, picture = ((masked & part.to(x.device)).any(1) for part in (space.is_text, space.is_image))
    return report ^ picture


def values_of(value: Value, x: Tensor) -> Tensor:
    """(M, b) of M draws x (M, b, L), up to a number that all draws of a sample share.

    Equal draws of a sample are valued once: of a word most draws are the same. Samples are valued together with those
    that have about as many different draws (up to 2, 4, 8, …), since one that begins a sentence has a dozen.
    """
    told_apart = x[..., (x != x[:1]).flatten(0, 1).any(0)]
    number = torch.arange(len(x), device=x.device)[:, None]  # (M, 1)
    equal = (told_apart[:, None] == told_apart).all(-1)  # (M, M, b)
    first = torch.where(equal, number[:, None], len(x)).amin(0)  # (M, b) the first draw that is this one
    distinct = first == number
    counts = distinct.sum(0)  # (b,)
    picked = (~distinct).int().argsort(dim=0, stable=True)  # (M, b) the distinct ones, then the others
    values = torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
    fewer, most = 1, int(counts.max())
    while fewer < most:  # a sample whose draws are all the same needs no value
        rows = ((counts > fewer) & (counts <= 2 * fewer)).nonzero()[:, 0]
        fewer *= 2
        if len(rows):
            chosen_ones = picked[:fewer, rows]
            values[: len(chosen_ones), rows] = value(x[chosen_ones, rows]).double()
    return values.gather(0, (distinct.cumsum(0) - 1).gather(0, first))


def choose_draw(values: Tensor, weight: float, u: Tensor) -> Tensor:
    """(b,) int64 index of a draw, taken with probability proportional to exp(weight * value).

    Args:
        values: (M, b).
        weight: >= 0; 0 chooses blindly.
        u: (b,) float64 in [0, 1).
    """
    cdf = (weight * values.double()).softmax(0).cumsum(0)
    return (cdf[:-1] <= u * cdf[-1]).sum(0)


def chosen(parts: Tensor, index: Tensor) -> Tensor:
    """(b, L) of (M, b, L): for each sample its draw `index` (b,)."""
    return parts[index, torch.arange(parts.shape[1], device=parts.device)]
