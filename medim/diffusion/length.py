"""Where a report ends: its length before its words, or at each word whether it ends there.

EOS pads reports, so P(EOS at position i | what is given) is the probability that the report has at most i tokens: one
evaluation gives the network's whole distribution of lengths. Drawing the length from it keeps orders that prefer sure
tokens from deciding it: next to a known EOS, EOS is nearly always the surest token, so the order `confidence` lets the
end creep towards the beginning (LLaDA, arXiv:2502.09992, App. B.4, holds EOS back for the same reason).

Words written from left to right need no such plan: P(EOS at i | the words before i) is the hazard of ending there. What
sharpens words must not touch it: a temperature below 1 favours a common next word over a rarer end, and a choice among
draws by how well report and picture agree favours one more word over none, so that reports grow half as long again as
the network's own (docs/study.md). `settle_ends` draws the end by itself, at temperature 1 and before any choice.

Shapes: B samples, b of them with an open end, L tokens, T report positions, N tokens asked for, V ids.
"""

import math

import torch
from torch import Tensor

from medim.diffusion.canvas import Canvas
from medim.diffusion.denoise import Denoise, ModalityLogits
from medim.diffusion.draw import uniforms
from medim.diffusion.schedule import Schedule
from medim.diffusion.settings import SamplerSettings


def open_end(canvas: Canvas) -> Tensor:
    """(B, L) bool: unknown report tokens behind the last known word."""
    return canvas.unknown & canvas.text & ~canvas.no_eos


def cut(p_eos: Tensor, open_: Tensor, u: Tensor) -> Tensor:
    """(b, T) bool: open positions that become EOS.

    A position does where the probability that the report ends at or before it is above u; that probability is made
    monotone by its running maximum, since a network's need not be.

    Args:
        p_eos: (b, T) P(EOS) per report position.
        open_: (b, T) bool.
        u: (b,) in [0, 1).
    """
    at_most = p_eos.masked_fill(~open_, 0.0).cummax(-1).values
    return open_ & (at_most > u[:, None])


def draw_lengths(canvas: Canvas, denoise: Denoise, settings: SamplerSettings, noise: Schedule) -> Tensor:
    """Draw the length of every report with an open end: EOS from there on, no EOS before it.

    Returns:
        (B,) int64 evaluations used, 0 or 1.

    Raises:
        ValueError: the report tokenizer has no EOS.
    """
    if canvas.space.eos_id is None:
        raise ValueError("sampler.text_length `first` needs a report tokenizer with EOS: set it to free in params.yaml")
    open_ = open_end(canvas)
    used = open_.any(1)
    rows = used.nonzero()[:, 0]
    if not len(rows):
        return used.long()
    clock = torch.ones(len(rows), dtype=torch.float64, device=canvas.x.device)
    t = clock if settings.time == "linspace" else noise.time(canvas.masked_fraction()[rows])
    u = uniforms([canvas.generators[i] for i in rows.tolist()], 1, 1, canvas.x.device)[0, :, 0]
    log_p = canvas.log_probabilities(denoise, rows, open_[rows], t, clock, settings)
    log_eos = torch.zeros(canvas.x[rows].shape, dtype=torch.float64, device=canvas.x.device)
    log_eos[open_[rows]] = log_p.text[:, canvas.space.eos_id].double()
    text = canvas.space.layout.text
    ends = torch.zeros_like(open_[rows])
    ends[:, text] = cut(log_eos.exp()[:, text], open_[rows][:, text], u)
    canvas.fill(rows, ends, torch.full_like(canvas.x[rows], canvas.space.eos_id), log_eos, 0)
    canvas.no_eos[rows] |= open_[rows] & ~ends
    canvas.counted[rows] &= ~ends  # as in training with a known length, see states.state_maps
    return used.long()


def settle_ends(log_p: ModalityLogits, eos_id: int | None, asked: Tensor, u: Tensor) -> tuple[ModalityLogits, Tensor]:
    """Draw which report tokens are EOS, and leave words alone to be drawn elsewhere.

    Where several words of a report come at once, P(EOS) at each of them is that the report is no longer, so all of them
    are held against one number, as in `cut`: with a number each it would end early.

    Args:
        log_p: log-probabilities at the tokens asked for, (N, V) of the report.
        eos_id: of the report tokenizer.
        asked: (b, L) bool, the N report tokens of this step, of each sample the next ones from left to right.
        u: (b, L) float64 in [0, 1); read at the first token of each sample.

    Returns:
        The same with nothing but EOS possible where the report ends (u < P(EOS)) and everything but EOS elsewhere; and
        (N,) float64, log-probability of what was settled, to be added to that of a token under the result.

    Raises:
        ValueError: the report tokenizer has no EOS.
    """
    if eos_id is None:
        raise ValueError("sampler.text_length `hazard` needs a tokenizer with EOS: set it to free in params.yaml")
    p_eos = torch.zeros(asked.shape, dtype=torch.float64, device=asked.device)
    p_eos[asked] = log_p.text[:, eos_id].double().exp()
    at_most = p_eos.cummax(1).values
    before = at_most.roll(1, 1).index_fill(1, torch.zeros(1, dtype=torch.int64, device=asked.device), 0.0)
    mine = u.gather(1, asked.int().argmax(1, keepdim=True))
    hazard = (at_most - before) / (1 - before).clamp(min=2.0**-53)  # P(ends here | not before)
    nats = torch.where(mine < at_most, hazard.log(), torch.log1p(-hazard.clamp(max=1 - 2.0**-53)))
    settled = nats.masked_fill(mine < before, 0.0)[asked]
    ends = (mine < at_most)[asked]
    words = log_p.text.clone()
    words[:, eos_id] = -math.inf
    end = torch.full_like(words[:1], -math.inf)
    end[:, eos_id] = 0.0
    # a row of nothing but EOS ends always (u < 1), so its words, which are NaN, are never taken
    text = torch.where(ends[:, None], end, words.log_softmax(-1))
    return ModalityLogits(text, log_p.image), settled
