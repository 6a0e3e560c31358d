"""How probable a model finds a report: the NELBO of Eq. 6, not capped, estimated from K maskings.

    -log p(report | picture) <= mean over k of w(t_k) * sum of the cross-entropies at the tokens that masking k hides

Every report position counts, words and the EOS behind them, as in training. Without its picture (every code [MASK]) the
same sum estimates -log p(report): the training state `report_alone`. What is compared should share its draws: two
reports of one seed are masked at the same times and by the same uniform numbers, so that most of the noise cancels in
their difference.

Letters: B reports, K maskings, L tokens of a sequence, T report positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medim.diffusion.absorbing import Noisy, nelbo, q_xt, sample_t
from medim.diffusion.denoise import Denoise
from medim.diffusion.schedule import Schedule, nelbo_weight
from medim.diffusion.space import TokenSpace

SMALLEST_TIME = 1e-3  # of a masking; the NELBO leaves out what lies below


class MaskDraws(NamedTuple):
    """What decides which report tokens are hidden: a token is, where its number is below 1 - alpha(t)."""

    t: Tensor  # (B, K) float64, one time in each of K equal strata
    uniform: Tensor  # (B, K, T) float64 in [0, 1)


def mask_draws(seeds: Sequence[int], masks: int, n_text: int) -> MaskDraws:
    """K maskings of each report, each report from its own seed; on the CPU.

    Raises:
        ValueError: no maskings.
    """
    if masks < 1:
        raise ValueError(f"a likelihood needs at least 1 masking, got {masks} (params.yaml:generate.side.masks)")
    t = torch.empty(len(seeds), masks, dtype=torch.float64)
    uniform = torch.empty(len(seeds), masks, n_text, dtype=torch.float64)
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        t[i] = sample_t(masks, SMALLEST_TIME, generator)
        uniform[i] = torch.rand(masks, n_text, generator=generator, dtype=torch.float64)
    return MaskDraws(t, uniform)


@torch.no_grad()
def report_log_p(
    denoise: Denoise, x0: Tensor, draws: MaskDraws, space: TokenSpace, schedule: Schedule, rows: int
) -> Tensor:
    """(B,) float64, log p of each report in nats, estimated from below; on the device of x0.

    Args:
        denoise: the network.
        x0: (B, L) whole reports, with their picture or with every code [MASK].
        draws: the maskings, see `mask_draws`.
        space: alphabet and layout.
        schedule: the one that was trained.
        rows: masked sequences that the network sees at once.

    Raises:
        ValueError: draws of another number of reports or of another length, or a report that is not whole.
    """
    num, masks = draws.t.shape
    if len(x0) != num or draws.uniform.shape[2] != space.layout.n_text:
        raise ValueError(
            f"{len(x0)} reports of {space.layout.n_text} tokens do not fit draws of shape {tuple(draws.uniform.shape)}"
        )
    device = x0.device
    report = space.is_text.to(device)  # (L,)
    t, uniform = draws.t.reshape(-1).to(device), draws.uniform.reshape(num * masks, -1).to(device)
    nats = []
    for start in range(0, num * masks, rows):
        part = slice(start, min(start + rows, num * masks))
        clean = x0[torch.arange(part.start, part.stop, device=device) // masks]  # (b, L)
        masked = torch.zeros_like(clean, dtype=torch.bool)
        masked[:, space.layout.text] = uniform[part] < (1 - schedule.alpha(t[part]))[:, None]
        noisy = Noisy(
            x0=clean, xt=q_xt(clean, masked, None, space.mask_id), t=t[part].float(),
            weight=nelbo_weight(schedule, t[part]), chance=torch.ones_like(t[part]),
            maskable=report.expand_as(clean), masked=masked,
        )  # fmt: skip
        logits = denoise(noisy.xt, noisy.t, masked)
        parts = nelbo(logits, noisy, space, weighting="nelbo", cap=1.0, text_weight=1.0, image_weight=1.0)
        nats.append(parts.text)
    return -torch.cat(nats).reshape(num, masks).mean(1)
