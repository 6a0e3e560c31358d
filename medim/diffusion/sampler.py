"""One sampler for every question: given tokens are kept, the unknown ones are filled.

Report from picture, picture from report, both from a prompt or from nothing, a draft with gaps, a part of a picture:
they differ only in which tokens of x are given. Built of parts: counts (how many per step), order (which first), commit
(which of the drawn are kept), guidance, draw.

Shapes: B samples, b of them unfinished, L tokens, G groups that are ranked apart, E evaluations.
Follows UCSC-VLAA/MeDiM model_eval_inf.py:2394-2577 (`official_settings`), itself MaskGIT (Chang et al. 2022). Differs:
any batch size with one generator per sample; counts from the tokens initially unknown per sample; [MASK], the other
modality and forbidden ids are impossible at every step; draws in float64; finished samples leave the batch.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medim.diffusion.ancestral import fill_ancestral
from medim.diffusion.canvas import Canvas, SampleResult
from medim.diffusion.commit import num_confident, select_top
from medim.diffusion.counts import spread, token_counts
from medim.diffusion.denoise import Denoise, ModalityLogits
from medim.diffusion.draw import uniforms
from medim.diffusion.first_hitting import fill_first_hitting
from medim.diffusion.length import draw_lengths, settle_ends
from medim.diffusion.order import scores, static_scores
from medim.diffusion.redraws import Redraws
from medim.diffusion.report_beams import fill_by_beams
from medim.diffusion.schedule import Schedule
from medim.diffusion.settings import SamplerSettings, official_settings
from medim.diffusion.space import TokenSpace
from medim.diffusion.value import Value, choose_draw, chosen, one_half_is_whole, values_of

__all__ = ["SampleResult", "SamplerSettings", "TokenSpace", "official_settings", "sample", "seeded_generators"]

_END = 1e-5  # where the official clock would end, after the last step


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per sample; the same seed gives the same sample on any device and in any batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def sample(
    denoise: Denoise, x: Tensor, space: TokenSpace, settings: SamplerSettings, generators: Sequence[torch.Generator],
    noise: Schedule, *, targets: Tensor | None = None, null: Tensor | None = None, value: Value | None = None,
) -> SampleResult:  # fmt: skip
    """Fill the unknown tokens of a batch.

    Args:
        denoise: the network; asked for logits at masked positions only.
        x: (B, L) shared ids, mask_id where unknown; every other token is kept as it is.
        space: alphabet and layout.
        settings: see there.
        generators: one per sample. A sample depends on its own generator only, not on the rest of the batch (but for
            the rounding of a network whose sums depend on the batch size).
        noise: the schedule that the network was trained with; turns a share of masked tokens into a time.
        targets: (B, L) bool, unknown tokens to fill; the others stay [MASK]. None: all.
        null: (B, L) bool, given tokens that guidance takes away in its second pass. None: all given tokens. A report
            that was filled before its picture (`text_lead` 1) is taken away as well.
        value: how well report and picture agree, where `settings.asks_value`.

    Raises:
        ValueError: no value where it is asked; see also `Canvas`, `Canvas.finish` and `fill_by_beams`.
    """
    if settings.asks_value and value is None:
        raise ValueError(
            f"sampler.draws is {settings.draws} and agreement_weight {settings.agreement_weight}, but nothing tells "
            "what agrees better: set draws to 1 and the weight to 0 (params.yaml)"
        )
    for name, off, used in (
        ("text_redraws", "0", settings.text_redraws > 0),
        ("sentence_temperature", "null", settings.sentence_temperature is not None),
    ):
        if used and not space.last_characters:
            raise ValueError(
                f"sampler.{name} needs TokenSpace.last_characters, to see where sentences end: set it to {off}"
            )
    if settings.text_lead < 1:
        return _fill(Canvas(space, x, generators, targets, null), denoise, settings, noise, value)
    unknown = x == space.mask_id if targets is None else (x == space.mask_id) & targets
    report = unknown & space.is_text.to(x.device)
    first = _fill(Canvas(space, x, generators, report, null), denoise, settings, noise, value)
    null = None if null is None else null | report
    second = _fill(Canvas(space, first.x, generators, unknown & ~report, null), denoise, settings, noise, value)
    result = _after(first, second, report)
    if bool((unknown & ~report).any()):
        again = replace(settings, text_lead=0.0, rewrites=0, text_temperature=settings.rewrite_temperature)
        for _ in range(settings.rewrites):
            x = torch.where(report, space.mask_id, result.x)
            filled = _fill(Canvas(space, x, generators, report, None), denoise, again, noise, value)
            result = _after(result, filled, ~report)
    return result


def _after(first: SampleResult, second: SampleResult, kept: Tensor) -> SampleResult:
    """`second`, which went on from `first`; steps and log-probabilities are of `first` where `kept` (B, L)."""
    later = torch.where(second.steps < 0, -1, second.steps + first.steps.amax(1, keepdim=True) + 1)
    return SampleResult(
        second.x, torch.where(kept, first.steps, later), torch.where(kept, first.log_probs, second.log_probs),
        first.num_evaluations + second.num_evaluations,
    )  # fmt: skip


def _fill(
    canvas: Canvas, denoise: Denoise, settings: SamplerSettings, noise: Schedule, value: Value | None
) -> SampleResult:
    if settings.method == "ancestral":
        fill_ancestral(canvas, denoise, settings, noise)
    elif settings.method == "first_hitting":
        fill_first_hitting(canvas, denoise, settings, noise)
    else:
        if settings.text_beams > 1 and bool((canvas.unknown & canvas.text).any()):
            fill_by_beams(canvas, denoise, settings, noise, value)
        fill_maskgit(canvas, denoise, settings, noise, value)
    return canvas.finish(settings.eos_fills)


def fill_maskgit(
    canvas: Canvas, denoise: Denoise, settings: SamplerSettings, noise: Schedule, value: Value | None
) -> None:
    """Draw all unknown tokens, keep some, repeat; before that the lengths of reports, where they come first.

    Args:
        canvas: filled in place.
        denoise: the network.
        settings: all of them.
        noise: used if settings.time is `fraction`.
        value: of several draws of a step, see `sample`.
    """
    device, length = canvas.x.device, canvas.x.shape[1]
    before = torch.zeros_like(canvas.num_evaluations)  # (B,) evaluations before the first of the plan
    if settings.text_length == "first":
        before = draw_lengths(canvas, denoise, settings, noise)
    plans = batch_plans(canvas, settings)  # (B, G, E)
    static = static_scores(
        canvas.space.layout, settings.image_order, uniforms(canvas.generators, 1, 1, device)[0, :, 0]
    )
    blind = blind_map(canvas, settings)
    tail = tail_counts(plans)  # (B, G)
    redraws = Redraws(canvas, settings, value)
    for step in itertools.count():
        rows = canvas.active()
        if not len(rows):
            return
        clock = clocks(canvas, plans, step, settings)[rows]
        t = clock if settings.time == "linspace" else noise.time(canvas.masked_fraction()[rows])
        numbers = 2 if settings.draws == 1 else 2 + settings.draws  # the draw, the order; the other draws, the choice
        numbers += settings.text_length == "hazard"
        u = uniforms([canvas.generators[i] for i in rows.tolist()], numbers, length, device)
        unknown = canvas.unknown[rows]
        planned = plans[rows, :, step] if step < plans.shape[2] else torch.zeros_like(plans[rows, :, 0])
        planned = torch.where(planned.any(1, keepdim=True), planned, tail[rows])  # of what was taken back
        keep = partial(
            _keep, canvas, settings, u=u[1], static=static[rows], noise=settings.choice_temperature * clock,
            unknown=unknown, planned=planned,
        )  # fmt: skip
        wanted = unknown
        if blind.any():
            known = keep(torch.zeros_like(static[rows]))
            wanted = torch.where(blind, known, unknown)
            if bool((blind | ~(canvas.text | canvas.image)).all()):  # whatever is drawn, these are kept
                keep = partial(_same, known)
        log_p = canvas.log_probabilities(denoise, rows, wanted, t, clock, settings)
        ids, log_prob, kept = _draw(canvas, rows, log_p, wanted, u, keep, value, settings)
        canvas.fill(rows, kept, ids, log_prob, before[rows, None] + step)
        if settings.eos_fills:
            canvas.end_reports(rows, before[rows, None] + step)
        if settings.text_redraws:
            redraws.judge(rows, u[1])  # from left to right, words have no other use for the order's numbers


def _same(known: Tensor, _log_prob: Tensor) -> Tensor:
    return known


def tail_counts(plans: Tensor) -> Tensor:
    """(B, G) tokens to keep at evaluations behind the plan (B, G, E): its last count that is not 0."""
    places = torch.arange(1, plans.shape[2] + 1, device=plans.device)
    last = ((plans > 0) * places).argmax(2, keepdim=True)
    return plans.gather(2, last)[:, :, 0]


def _draw(
    canvas: Canvas, rows: Tensor, log_p: ModalityLogits, wanted: Tensor, u: Tensor, keep: Callable[[Tensor], Tensor],
    value: Value | None, settings: SamplerSettings,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(b, L) ids, their log-probabilities and which are kept; of several draws one a sample, see `value`.

    Args:
        canvas, rows, log_p, wanted: see `Canvas.draw`.
        u: (2 or more, b, L) of the first draw, of the order, with M > 1 draws of the others and of the choice, and with
            text_length `hazard` of the report's end.
        keep: log-probabilities (b, L) -> the tokens of this step.
        value: None: the first draw.
        settings: draws, agreement_weight, eos_fills, text_length, temperatures.
    """
    settled = torch.zeros_like(u[0])
    if settings.text_length == "hazard":
        asked = wanted & canvas.text
        log_p, settled[asked] = settle_ends(log_p, canvas.space.eos_id, asked, u[-1])
        u = u[:-1]

    whole = one_half_is_whole(canvas.x[rows], canvas.space)
    several = value is not None and settings.draws > 1 and bool(whole.any())
    numbers = torch.cat([u[:1], u[2:-1]]) if several else u[:1]
    ids, log_prob = canvas.draw(log_p, rows, wanted, numbers, settings)  # (M, b, L) both
    log_prob = log_prob + settled
    kept = torch.stack(list(map(keep, log_prob)))
    if value is None or not several:
        return ids[0], log_prob[0], kept[0]
    later = torch.stack([canvas.after(rows, *one, settings.eos_fills) for one in zip(kept, ids, strict=True)])
    index = torch.where(whole, choose_draw(values_of(value, later), settings.agreement_weight, u[-1, :, 0]), 0)
    return chosen(ids, index), chosen(log_prob, index), chosen(kept, index)


def _keep(
    canvas: Canvas, settings: SamplerSettings, log_prob: Tensor, *, u: Tensor, static: Tensor, noise: Tensor,
    unknown: Tensor, planned: Tensor,
) -> Tensor:  # fmt: skip
    """(b, L) bool: the tokens of this step, given log-probabilities (b, L) of what was drawn; see `choose`."""
    rank = torch.where(
        canvas.text,
        scores(settings.text_order, log_prob, u, static, noise),
        scores(settings.image_order, log_prob, u, static, noise),
    )
    return choose(rank, log_prob.exp(), unknown, planned, group_maps(canvas, settings), settings)


def blind_map(canvas: Canvas, settings: SamplerSettings) -> Tensor:
    """(L,) bool: tokens of groups whose order and commit rule do not ask the network.

    Which of them come now is known beforehand, so that only those are asked for; what is drawn is the same.
    """
    blind = torch.zeros_like(canvas.text)
    for name, map_ in group_maps(canvas, settings):
        orders = (settings.text_order, settings.image_order) if settings.pool == "joint" else (
            getattr(settings, f"{name}_order"),
        )  # fmt: skip
        if "confidence" not in orders and not settings.adaptive(name):
            blind |= map_
    return blind


def choose(
    rank: Tensor, confidence: Tensor, unknown: Tensor, planned: Tensor, groups: Sequence[tuple[str, Tensor]],
    settings: SamplerSettings,
) -> Tensor:  # fmt: skip
    """(b, L) bool: the drawn tokens that are kept, each group by its own rule.

    Args:
        rank: (b, L) scores of the order.
        confidence: (b, L) probability of the drawn token.
        unknown: (b, L) bool.
        planned: (b, G) tokens that the schedule wants now.
        groups: G pairs of modality name and (L,) bool.
        settings: commit rules and their levels.
    """
    commit = torch.zeros_like(unknown)
    for group, (name, map_) in enumerate(groups):
        eligible = unknown & map_
        if settings.adaptive(name):
            rule, level = getattr(settings, f"{name}_commit"), getattr(settings, f"{name}_commit_level")
            commit |= select_top(confidence, eligible, num_confident(rule, confidence, eligible, level))
        else:
            commit |= select_top(rank, eligible, planned[:, group])
    return commit


def group_maps(canvas: Canvas, settings: SamplerSettings) -> list[tuple[str, Tensor]]:
    """G groups that are ranked apart, each with the modality whose settings hold for it and its (L,) map."""
    if settings.pool == "joint":
        return [("image", canvas.text | canvas.image)]
    return [("text", canvas.text), ("image", canvas.image)]


def batch_plans(canvas: Canvas, settings: SamplerSettings) -> Tensor:
    """(B, G, E) int64 tokens to keep per sample, group and evaluation; 0 after a sample's own last one."""
    num_text, num_image = ((canvas.unknown & map_).sum(1).tolist() for map_ in (canvas.text, canvas.image))
    plans = [sample_plan(*numbers, settings) for numbers in zip(num_text, num_image, strict=True)]
    longest = max((plan.shape[1] for plan in plans), default=0)
    out = np.zeros((len(plans), 1 if settings.pool == "joint" else 2, max(1, longest)), np.int64)
    for row, plan in zip(out, plans, strict=True):
        row[:, : plan.shape[1]] = plan
    return torch.from_numpy(out).to(canvas.x.device)


@lru_cache(maxsize=1024)
def sample_plan(num_text: int, num_image: int, settings: SamplerSettings) -> NDArray[np.int64]:
    """(G, E) tokens to keep per group and evaluation of one sample; groups with an adaptive rule have none.

    E is the longer of the two numbers of steps; the shorter modality is spread over it. Evaluations that would keep
    nothing are left out.
    """
    if settings.pool == "joint":
        total = 0 if settings.adaptive("image") else num_text + num_image
        return token_counts(settings.image_schedule, total, settings.image_steps, settings.image_shift)[None]
    text = token_counts(
        settings.text_schedule, 0 if settings.adaptive("text") else num_text, settings.text_steps, settings.text_shift
    )
    image = token_counts(
        settings.image_schedule, 0 if settings.adaptive("image") else num_image, settings.image_steps,
        settings.image_shift,
    )  # fmt: skip
    evaluations = max(len(text), len(image))
    if not evaluations:
        return np.zeros((2, 0), np.int64)
    lead = settings.text_lead if len(text) else 0.0
    plan = np.stack([spread(text, evaluations, 0.0), spread(image, evaluations, lead)])
    return plan[:, plan.any(0)]


def clocks(canvas: Canvas, plans: Tensor, step: int, settings: SamplerSettings) -> Tensor:
    """(B,) float64 from 1 at the first evaluation down towards 0: for the noise of the order and the ramp of guidance.

    With a plan it is the official linspace(1, 1e-5, E + 1)[step]; where an adaptive rule still has tokens to fill, the
    number of evaluations is not known, and the share of unknown tokens takes its place.
    """
    evaluations = plans.any(1).sum(1).clamp(min=1)  # (B,)
    planned = 1 - (1 - _END) * step / evaluations.double()
    waiting = torch.zeros_like(evaluations, dtype=torch.bool)
    for name, map_ in group_maps(canvas, settings):
        if settings.adaptive(name):
            waiting |= (canvas.unknown & map_).any(1)
    return torch.where(waiting, canvas.unknown_fraction(), planned.clamp(min=_END))
