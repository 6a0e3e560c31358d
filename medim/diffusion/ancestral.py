"""The reverse process itself, on a grid of times (Eq. 5; the DDPM sampler of MDLM, Sahoo et al. 2024).

Shapes: B samples, b of them unfinished, L tokens. Where no token of a sample is unmasked in a step, the network is not
asked for it: which tokens are unmasked does not depend on its answer, so this changes no distribution.
"""

import torch
from torch import Tensor

from medim.diffusion.canvas import Canvas
from medim.diffusion.denoise import Denoise
from medim.diffusion.draw import uniforms
from medim.diffusion.schedule import Schedule
from medim.diffusion.settings import SamplerSettings


def unmask_chance(alpha_s: Tensor, alpha_t: Tensor) -> Tensor:
    """P(clean at s | masked at t), s < t, of the absorbing process: (alpha_s - alpha_t) / (1 - alpha_t)."""
    return (alpha_s - alpha_t) / (1 - alpha_t)


def fill_ancestral(canvas: Canvas, denoise: Denoise, settings: SamplerSettings, noise: Schedule) -> None:
    """Fill a canvas over max(text_steps, image_steps) equal steps of time from 1 to 0.

    Args:
        canvas: filled in place.
        denoise: the network; it is told the time of the grid.
        settings: steps, temperature, top_p, guidance.
        noise: the schedule of training.
    """
    num = max(settings.text_steps, settings.image_steps)
    times = torch.linspace(1, 0, num + 1, dtype=torch.float64)
    alpha = noise.alpha(times)
    for step in range(num):
        rows = canvas.active()
        draws = uniforms([canvas.generators[i] for i in rows.tolist()], 2, canvas.x.shape[1], canvas.x.device)
        chance = float(unmask_chance(alpha[step + 1], alpha[step])) if step < num - 1 else 1.0
        moved = canvas.unknown[rows] & (draws[0] < chance)
        asked = moved.any(1)
        if not bool(asked.any()):
            continue
        rows, moved, u = rows[asked], moved[asked], draws[1][asked]
        t = torch.full((len(rows),), float(times[step]), dtype=torch.float64, device=canvas.x.device)
        ids, log_prob = canvas.propose(denoise, rows, moved, t, t, u, settings)
        canvas.fill(rows, moved, ids, log_prob, step)
