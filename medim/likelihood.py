"""How probable a model finds a report: the NELBO of Eq. 6, not capped, estimated from K maskings.

    -log p(report | picture) <= mean over k of T / l_k * sum of the cross-entropies at the l_k tokens that k hides

Masks of a time t hide a number l of tokens that is binomial, each set of l as probable as another; integrated over all
times their weights -alpha' / (1 - alpha) leave 1 / l for each l in 1..T, whatever the schedule. So l is drawn, evenly,
instead of t (LLaDA, Nie et al. 2025, arXiv:2502.09992, Eq. 6), and the sum varies less: at a small t few tokens or none
are hidden, and the weight of each is large.

Every report position counts, words and the EOS behind them. Without its picture (every code [MASK]) the
same sum estimates -log p(report): the training state `report_alone`. What is compared should share its draws: two
reports of one seed have the same positions hidden, so that most of the noise cancels in their difference.

Letters: B reports, K maskings, L tokens of a sequence, T report positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medim.diffusion.absorbing import Noisy, nelbo, q_xt, sample_t
from medim.diffusion.denoise import Denoise
from medim.diffusion.schedule import Schedule
from medim.diffusion.space import TokenSpace


class MaskDraws(NamedTuple):
    """Which report tokens are hidden."""

    number: Tensor  # (B, K) int64 in [1, T], how many; stratified over the K maskings
    rank: Tensor  # (B, K, T) int64, a permutation of 0..T - 1: a token is hidden, where its rank is below the number


def mask_draws(seeds: Sequence[int], masks: int, n_text: int) -> MaskDraws:
    """K maskings of each report, each report from its own seed; on the CPU.

    Raises:
        ValueError: no maskings.
    """
    if masks < 1:
        raise ValueError(f"a likelihood needs at least 1 masking, got {masks} (params.yaml:generate.side.masks)")
    number = torch.empty(len(seeds), masks, dtype=torch.int64)
    uniform = torch.empty(len(seeds), masks, n_text, dtype=torch.float64)
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        number[i] = 1 + (sample_t(masks, 0.0, generator) * n_text).long().clamp(max=n_text - 1)
        uniform[i] = torch.rand(masks, n_text, generator=generator, dtype=torch.float64)
    return MaskDraws(number, uniform.argsort(-1).argsort(-1))


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
        schedule: the one that was trained; tells the network at which time so many tokens are hidden.
        rows: masked sequences that the network sees at once.

    Raises:
        ValueError: draws of another number of reports or of another length, or a report that is not whole.
    """
    num, masks, n_text = draws.rank.shape
    if len(x0) != num or n_text != space.layout.n_text:
        raise ValueError(
            f"{len(x0)} reports of {space.layout.n_text} tokens do not fit draws of shape {tuple(draws.rank.shape)}"
        )
    device = x0.device
    report = space.is_text.to(device)  # (L,)
    number, rank = draws.number.reshape(-1).to(device), draws.rank.reshape(num * masks, -1).to(device)
    nats = []
    for start in range(0, num * masks, rows):
        part = slice(start, min(start + rows, num * masks))
        clean = x0[torch.arange(part.start, part.stop, device=device) // masks]  # (b, L)
        masked = torch.zeros_like(clean, dtype=torch.bool)
        masked[:, space.layout.text] = rank[part] < number[part, None]
        weight = n_text / number[part].double()
        noisy = Noisy(
            x0=clean, xt=q_xt(clean, masked, None, space.mask_id), t=schedule.time(1 / weight).float(), weight=weight,
            chance=torch.ones_like(weight), maskable=report.expand_as(clean), masked=masked,
        )  # fmt: skip
        logits = denoise(noisy.xt, noisy.t, masked)
        parts = nelbo(logits, noisy, space, weighting="nelbo", cap=1.0, text_weight=1.0, image_weight=1.0)
        nats.append(parts.text)
    return -torch.cat(nats).reshape(num, masks).mean(1)
