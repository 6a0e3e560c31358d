"""Which unknown token comes first.

Shapes: B samples, L tokens, n codes of a picture. A score is the higher the earlier the token is filled.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from medim.diffusion.draw import gumbel
from medim.vocab import SequenceLayout

TEXT_ORDERS = ("confidence", "random", "raster")
IMAGE_ORDERS = (*TEXT_ORDERS, "halton")


def van_der_corput(index: Tensor, base: int) -> Tensor:
    """Radical inverse of whole numbers in a base, in [0, 1), float64, same shape."""
    out, rest, digit = torch.zeros(index.shape, dtype=torch.float64), index.clone(), 1.0 / base
    while bool((rest > 0).any()):
        out += digit * (rest % base)
        rest, digit = rest // base, digit / base
    return out


@lru_cache(maxsize=8)
def halton_order(side: int) -> tuple[int, ...]:
    """Raster positions of a side x side grid in the order in which the 2-D Halton sequence (bases 2, 3) hits them.

    Besnier et al. 2025 (arXiv:2503.17076). They take 10,000 points; here as many as it takes to hit every cell.
    """
    seen: dict[int, None] = {}
    first, block = 1, 4 * side * side
    while len(seen) < side * side:
        index = torch.arange(first, first + block)
        rows, columns = ((van_der_corput(index, base) * side).long() for base in (2, 3))
        seen.update(dict.fromkeys((rows * side + columns).tolist()))
        first += block
    return tuple(seen)


def picture_side(num_codes: int) -> int:
    """Side of a square picture in codes.

    Raises:
        ValueError: the picture is not square.
    """
    side = math.isqrt(num_codes)
    if side * side != num_codes:
        raise ValueError(
            f"the Halton order needs a square picture, got {num_codes} codes: set the image order to random"
        )
    return side


def static_scores(layout: SequenceLayout, image_order: str, u: Tensor) -> Tensor:
    """(B, L) float64 scores that stay through sampling: raster, and Halton from a start of each sample's own.

    Args:
        layout: positions.
        image_order: `halton`, or anything else for raster.
        u: (B,) in [0, 1), where in the Halton sequence a sample starts.
    """
    scores = -torch.arange(layout.length, dtype=torch.float64, device=u.device).repeat(len(u), 1)
    if image_order == "halton" and layout.n_image:
        order = torch.tensor(halton_order(picture_side(layout.n_image)), device=u.device)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=u.device)
        start = (u * len(order)).long()  # (B,)
        scores[:, layout.image] = -((rank[None] - start[:, None]) % len(order)).double()
    return scores


def scores(order: str, log_prob: Tensor, u: Tensor, static: Tensor, noise: Tensor) -> Tensor:
    """(B, L) scores of one modality's order at this step.

    Args:
        order: `confidence` is MaskGIT's log p + noise * Gumbel; `random`; `raster` and `halton` are static.
        log_prob: (B, L) log-probability of the token drawn at each position.
        u: (B, L) uniform numbers.
        static: (B, L), see `static_scores`.
        noise: (B,) strength of the Gumbel noise, the official choice temperature times the time.
    """
    if order == "confidence":
        return log_prob + noise[:, None] * gumbel(u)
    return u if order == "random" else static
