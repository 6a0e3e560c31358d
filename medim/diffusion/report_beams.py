"""Reports of pictures by beam search: from left to right, the K best beginnings at once.

A masked denoiser that is asked for the first unknown word, then for the next, is a model of words in order, so this is
the search of any decoder (see medim/baselines/beam_search.py), with three differences: the network looks both ways, so
nothing is cached; ended reports stay among the K, and the search is over when all K have ended; and a beginning is
worth its log-probability plus w times how well it agrees with the picture, its [MASK] included (`value`), as decoders
are guided by CLIP (MAGIC, Su et al. 2022, arXiv:2205.02655).

Shapes: B samples, R = B k rows in the samples' order (k = 1 at first, then K), L tokens, V words.
"""

import math

import torch
from torch import Tensor

from medim.diffusion.canvas import Canvas
from medim.diffusion.denoise import Denoise
from medim.diffusion.schedule import Schedule
from medim.diffusion.settings import SamplerSettings
from medim.diffusion.value import Value

BREADTH = 2  # times K: continuations of a sample that the value looks at, those of the best log-probability


def fill_by_beams(
    canvas: Canvas, denoise: Denoise, settings: SamplerSettings, noise: Schedule, value: Value | None
) -> None:
    """Fill the reports of a canvas whose pictures are whole.

    Args:
        canvas: filled in place; `num_evaluations` counts every beam.
        denoise: the network.
        settings: text_beams, agreement_weight, guidance and time; temperatures and schedules are not read.
        noise: used if settings.time is `fraction`.
        value: asked where agreement_weight > 0.

    Raises:
        ValueError: unknown words of a report are not its end, or its picture is not whole.
    """
    _check(canvas)
    num, length, device = len(canvas.x), canvas.x.shape[1], canvas.x.device
    guide = value if settings.agreement_weight > 0 else None
    rows, worth = canvas, torch.zeros(num, dtype=torch.float64, device=device)  # (R,) of the agreement
    evaluations = canvas.num_evaluations.clone()
    for step in range(length):
        if not len(rows.active()):
            break
        more, asked = _continuations(rows, denoise, settings, noise, step)
        evaluations += asked.view(num, -1).sum(1)
        wide = settings.text_beams * (1 if guide is None else BREADTH)
        parents, words = _best((rows.log_probs.sum(1) + worth)[:, None] + more, num, wide)
        rows = _continued(rows.rows(parents), words, more[parents, words], step)
        worth = torch.zeros(len(rows.x), dtype=torch.float64, device=device)
        if guide is not None:
            worth = settings.agreement_weight * guide(rows.x.view(num, -1, length).transpose(0, 1)).T.flatten().double()
        kept = _best((rows.log_probs.sum(1) + worth)[:, None], num, settings.text_beams)[0]
        rows, worth = rows.rows(kept), worth[kept]
    kept = _best((rows.log_probs.sum(1) + worth)[:, None], num, 1)[0]
    canvas.become(rows.rows(kept), evaluations)


def _check(canvas: Canvas) -> None:
    report = canvas.unknown & canvas.text
    if bool((report.int().cumsum(1).bool() & canvas.text & ~report).any()):
        raise ValueError(
            "sampler.text_beams needs reports whose unknown words are their end: set it to 1 (params.yaml)"
        )
    if bool(((canvas.x == canvas.space.mask_id) & canvas.image).any()):
        raise ValueError(
            "sampler.text_beams searches the best report of a whole picture; without one every sample would be the "
            "same: set it to 1 for this question (params.yaml:generate.sampler_of)"
        )


def _first_unknown(rows: Canvas) -> Tensor:
    """(R, L) bool."""
    return rows.unknown & (rows.unknown.int().cumsum(1) == 1)


def _continuations(
    rows: Canvas, denoise: Denoise, settings: SamplerSettings, noise: Schedule, step: int
) -> tuple[Tensor, Tensor]:
    """(R, V) log-probability of each next word, and (R,) evaluations; an ended report goes on for nothing, once."""
    active, before = rows.active(), rows.num_evaluations.clone()
    clock = torch.full((len(active),), 1 - step / rows.x.shape[1], dtype=torch.float64, device=rows.x.device)
    t = clock if settings.time == "linspace" else noise.time(rows.masked_fraction()[active])
    log_p = rows.log_probabilities(denoise, active, _first_unknown(rows)[active], t, clock, settings).text
    more = torch.full((len(rows.x), log_p.shape[1]), -math.inf, dtype=torch.float64, device=log_p.device)
    more[:, 0] = 0.0
    more[active] = log_p.double()
    return more, rows.num_evaluations - before


def _best(totals: Tensor, num: int, most: int) -> tuple[Tensor, Tensor]:
    """Of totals (R, V) the best of each of `num` samples, `most` at most: their rows and words, each (R',)."""
    mine = totals.reshape(num, -1)
    index = mine.topk(min(most, mine.shape[1])).indices
    first = torch.arange(num, device=totals.device)[:, None] * (len(totals) // num)
    return (first + index // totals.shape[1]).flatten(), (index % totals.shape[1]).flatten()


def _continued(rows: Canvas, words: Tensor, log_p: Tensor, step: int) -> Canvas:
    """Rows (R) with their first unknown word filled; an EOS ends the report."""
    every = torch.arange(len(words), device=words.device)
    ids, log_probs = words[:, None].expand_as(rows.x), log_p[:, None].expand_as(rows.log_probs)
    rows.fill(every, _first_unknown(rows), ids, log_probs, step)
    rows.end_reports(every, step)
    return rows
