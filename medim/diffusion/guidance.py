"""One call of the network: log-probabilities of the wanted tokens, restricted (SUBS) and guided.

Shapes: B samples, L tokens, N rows (one per wanted position of a modality), V ids of that modality.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from medim.diffusion.absorbing import subs
from medim.diffusion.denoise import Denoise, ModalityLogits
from medim.diffusion.space import TokenSpace

_FLOOR = -1e4  # log-probability that stands for zero in the weaker branch, so that no inf - inf arises
RAMPS = ("constant", "linear")


class Null(NamedTuple):
    """The other branch of classifier-free guidance."""

    xt: Tensor  # (B, L) xt with the condition replaced by [MASK]
    text: Tensor  # (B,) weight w >= 0 at report positions
    image: Tensor  # (B,) weight w >= 0 at picture positions


def guide(cond: Tensor, uncond: Tensor, w: Tensor) -> Tensor:
    """(N, V) (1 + w) log p(x | condition) - w log p(x), renormalised; equal to `cond` where w is 0.

    Args:
        cond: (N, V) log-probabilities.
        uncond: (N, V) log-probabilities.
        w: (N,).
    """
    mixed = (1 + w[:, None]) * cond - w[:, None] * uncond.clamp(min=_FLOOR)
    mixed = torch.where(cond.isneginf(), cond, mixed).log_softmax(-1)
    return torch.where(w[:, None] == 0, cond, mixed)


def guidance_weight(strength: float, ramp: str, clock: Tensor) -> Tensor:
    """(B,) w at this step: `constant`, or `linear`, the official w (1 - clock) from 0 at the start.

    Args:
        strength: w >= 0.
        ramp: one of RAMPS.
        clock: (B,) from 1 at the start to 0 at the end.
    """
    return strength * (torch.ones_like(clock) if ramp == "constant" else 1 - clock)


def predict(
    denoise: Denoise, xt: Tensor, t: Tensor, wanted: Tensor, space: TokenSpace, null: Null | None
) -> ModalityLogits:
    """Log-probabilities (float64) at the wanted positions; both branches of guidance go in one batch.

    Args:
        denoise: the network.
        xt: (B, L).
        t: (B,).
        wanted: (B, L) bool, masked positions.
        space: alphabet and layout.
        null: guidance; see `guided_rows` for the samples that cost no second pass.
    """
    need = guided_rows(xt, wanted, space, null)
    inputs, times, positions = xt, t, wanted
    if null is not None and bool(need.any()):
        inputs, times, positions = (
            torch.cat([xt, null.xt[need]]), torch.cat([t, t[need]]), torch.cat([wanted, wanted[need]])
        )  # fmt: skip
    logits = denoise(inputs, times.float(), positions)
    out = []
    for both, map_, weight in (
        (logits.text, space.is_text, None if null is None else null.text),
        (logits.image, space.is_image, None if null is None else null.image),
    ):
        sample = (wanted & map_.to(xt.device)).nonzero()[:, 0]  # (N,)
        scores = both[: len(sample)].double()
        if weight is not None and len(both) > len(sample):
            rows = need[sample]
            cond, other = scores[rows].log_softmax(-1), both[len(sample) :].double().log_softmax(-1)
            scores = scores.index_put((rows,), guide(cond, other, weight[sample][rows].double()))
        out.append(scores)
    return subs(ModalityLogits(*out), space.allowed_text)


def guided_rows(xt: Tensor, wanted: Tensor, space: TokenSpace, null: Null | None) -> Tensor:
    """(B,) bool, samples that need the second pass: a wanted token has a weight, and the null input is not xt."""
    if null is None:
        return torch.zeros(len(xt), dtype=torch.bool, device=xt.device)
    text, image = ((wanted & map_.to(xt.device)).any(1) for map_ in (space.is_text, space.is_image))
    return (((null.text > 0) & text) | ((null.image > 0) & image)) & (null.xt != xt).any(1)
