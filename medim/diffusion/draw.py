"""Drawing of tokens from log-probabilities, with one generator per sample.

Shapes: B samples, L tokens, N rows, V ids. Everything is float64: single precision cuts the tail of what is drawn
(Zheng et al. 2024, arXiv:2409.02908).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def uniforms(generators: Sequence[torch.Generator], num: int, length: int, device: torch.device) -> Tensor:
    """(num, B, L) float64 in [0, 1); each sample's numbers come from its own generator, whatever else is in the batch.

    Args:
        generators: B generators.
        num: numbers per token.
        length: L.
        device: of the result.
    """
    rows = [torch.rand(num, length, generator=g, dtype=torch.float64, device=g.device).to(device) for g in generators]
    return torch.stack(rows, 1) if rows else torch.empty(num, 0, length, dtype=torch.float64, device=device)


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform ones in [0, 1), same shape, finite."""
    return -(-u.clamp(min=2.0**-54).log()).log()


def draw_ids(log_p: Tensor, u: Tensor, temperature: float, top_p: float) -> Tensor:
    """Ids drawn from p^(1 / temperature) within the nucleus; an id of probability 0 is never drawn.

    By inversion of the distribution function: one uniform number per token instead of V Gumbel ones, and one
    distribution function for all M draws of a token.

    Args:
        log_p: (N, V) float64 log-probabilities.
        u: (N,) or (M, N) float64 in [0, 1); the result has its shape.
        temperature: 0 takes the most probable id.
        top_p: smallest set of ids that holds this probability at `temperature`; 1 keeps all.
    """
    if not len(log_p):
        return torch.empty(u.shape, dtype=torch.int64, device=log_p.device)
    if temperature == 0:
        return log_p.argmax(-1).expand(u.shape).clone()
    p = (log_p / temperature).softmax(-1)
    if top_p < 1:
        ranked, ids = torch.sort(p, dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked  # probability of all better ids: 0 for the best, which thus always stays
        p = p.masked_fill(torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, before >= top_p), 0.0)
    cdf = p.cumsum(-1)
    total = cdf[:, -1]
    level = torch.minimum(u * total, torch.nextafter(total, torch.full_like(total, -math.inf)))
    drawn = torch.searchsorted(cdf, level.reshape(-1, len(total)).T.contiguous(), right=True)  # (N, M)
    return drawn.T.reshape(u.shape)
