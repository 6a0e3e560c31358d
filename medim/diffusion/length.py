"""The length of a report before its words.

EOS pads reports, so P(EOS at position i | what is given) is the probability that the report has at most i tokens: one
evaluation gives the network's whole distribution of lengths. Drawing the length from it keeps orders that prefer sure
tokens from deciding it: next to a known EOS, EOS is nearly always the surest token, so the order `confidence` lets the
end creep towards the beginning (LLaDA, arXiv:2502.09992, App. B.4, holds EOS back for the same reason).

Shapes: B samples, b of them with an open end, L tokens, T report positions.
"""

import torch
from torch import Tensor

from medim.diffusion.canvas import Canvas
from medim.diffusion.denoise import Denoise
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
