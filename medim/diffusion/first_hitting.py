"""The reverse process in continuous time, one token per evaluation (Zheng et al. 2024, arXiv:2409.02908).

Shapes: B samples, b of them unfinished, L tokens. With n tokens masked, the chance 1 - alpha at which the next one is
unmasked is the largest of n uniform numbers below the current chance; which one is uniform. No discretisation error, so
this is what the other samplers are tested against.
"""

import torch

from medim.diffusion.canvas import Canvas
from medim.diffusion.commit import select_top
from medim.diffusion.denoise import Denoise
from medim.diffusion.draw import uniforms
from medim.diffusion.schedule import Schedule
from medim.diffusion.settings import SamplerSettings


def fill_first_hitting(canvas: Canvas, denoise: Denoise, settings: SamplerSettings, noise: Schedule) -> None:
    """Fill a canvas token by token.

    Args:
        canvas: filled in place.
        denoise: the network; it is told the time of the hit.
        settings: temperature, top_p, guidance.
        noise: the schedule of training.
    """
    device = canvas.x.device
    one = torch.ones((), dtype=torch.float64, device=device)
    chance = (1 - noise.alpha(one)).expand(len(canvas.x)).clone()  # (B,) move chance, falls to 0
    for step in range(int(canvas.unknown.sum(1).max()) if canvas.x.numel() else 0):
        rows = canvas.active()
        draws = uniforms([canvas.generators[i] for i in rows.tolist()], 3, canvas.x.shape[1], device)
        unknown = canvas.unknown[rows]
        chance[rows] *= draws[2, :, 0] ** (1 / unknown.sum(1).double())
        t = noise.time(chance[rows])
        chosen = select_top(draws[1], unknown, torch.ones_like(rows))
        ids, log_prob = canvas.propose(denoise, rows, chosen, t, t, draws[0], settings)
        canvas.fill(rows, chosen, ids, log_prob, step)
