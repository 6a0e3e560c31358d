"""Which tokens of a training sample are given, noisy or hidden: training in the states that are sampled.

The official training masks report and picture at one common rate, so that "one side clean, the other all masked", where
its report and picture generation begin, never occurs (medim.diffusion.sampler asks for exactly these).

Shapes: B samples, L tokens.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from medim.diffusion.space import TokenSpace

STATES = ("joint", "report_given_picture", "picture_given_report", "report_alone", "picture_alone")
JOINT, REPORT_GIVEN_PICTURE, PICTURE_GIVEN_REPORT, REPORT_ALONE, PICTURE_ALONE = range(5)


class StateMaps(NamedTuple):
    """What happens to each token; maskable, hidden and keep are disjoint and cover everything."""

    maskable: Tensor  # (B, L) bool, masked at rate t, or always where covered; carries loss
    hidden: Tensor  # (B, L) bool, always [MASK], no loss
    keep: Tensor  # (B, L) bool, always clean: the condition, BOI and EOI
    state: Tensor  # (B,) int64, index into STATES, after condition dropout
    covered: Tensor  # (B, L) bool, of the maskable ones those that are always [MASK]


def check_fractions(fractions: Mapping[str, float]) -> list[float]:
    """The share of each of STATES, those not named 0.

    Raises:
        ValueError: unknown state, negative share, or shares that do not sum to 1.
    """
    _check_names("states", fractions)
    shares = [float(fractions.get(name, 0.0)) for name in STATES]
    if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"the shares of the training states must be >= 0 and sum to 1, got {dict(fractions)}")
    return shares


def _check_names(parameter: str, shares: Mapping[str, float]) -> None:
    unknown = sorted(set(shares) - set(STATES))
    if unknown:
        raise ValueError(f"{parameter}: no training states {unknown}: params.yaml may name {', '.join(STATES)}")


def check_all_masked(shares: Mapping[str, float]) -> None:
    """Hold the shares of `all_masked_times` to known states and to [0, 1].

    Raises:
        ValueError: unknown state, or a share outside.
    """
    _check_names("all_masked", shares)
    check_probabilities(**{f"all_masked.{name}": share for name, share in shares.items()})


def check_ends(length_known: float, cut: float) -> None:
    """Hold the shares of samples whose report's end is known, and of those that are cut, to [0, 1], and their sum.

    Raises:
        ValueError: names the one outside, or both.
    """
    check_probabilities(length_known=length_known, cut=cut)
    if length_known + cut > 1:
        raise ValueError(f"length_known and cut may sum to 1 at most, got {length_known} and {cut} (params.yaml)")


def check_probabilities(**values: float) -> None:
    """Hold each to [0, 1].

    Raises:
        ValueError: names the one outside.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value} (params.yaml)")


def assign_states(fractions: Mapping[str, float], num: int, generator: torch.Generator) -> Tensor:
    """(num,) int64 states in random order, each as often as its share of the batch, rounded up or down.

    Systematic sampling: one offset for the whole batch. So counts are exact where shares of the batch are whole, and
    right on average where they are not (plain rounding would never train a state of share .1 in a batch of 4).

    Args:
        fractions: share per name of STATES.
        num: B.
        generator: on the CPU.
    """
    edges = torch.tensor(check_fractions(fractions), dtype=torch.float64).cumsum(0)
    # rounding, so that sums such as .1 + .2 meet the grid where they should
    points = (torch.arange(num) + torch.rand((), generator=generator, dtype=torch.float64)) / max(1, num)
    ordered = torch.searchsorted((edges * 1e9).round() / 1e9, points, right=True).clamp(max=len(STATES) - 1)
    return ordered[torch.randperm(num, generator=generator)]


def all_masked_times(t: Tensor, state: Tensor, shares: Mapping[str, float], generator: torch.Generator) -> Tensor:
    """Times (B,) of which some are 1, where nothing of the answer is known.

    There only the condition can help: at smaller times a token's neighbours have told most of what the condition would,
    and little is left to learn it from. The official training draws times uniformly; MaskGIT's (Chang et al. 2022)
    draws large ones more often, and time 1 itself is what generation asks first. Where shares are not 0, the trained
    mean of `weighting: nelbo` is no longer a bound; validation has none.

    Args:
        t: (B,) see `absorbing.sample_t`.
        state: (B,) index into STATES, after condition dropout.
        shares: probability of time 1 per name of STATES; those not named keep their times.
        generator: on the CPU; read only where a share is not 0.
    """
    if not any(shares.values()):
        return t
    chance = torch.tensor([float(shares.get(name, 0.0)) for name in STATES], dtype=torch.float64)[state.cpu()]
    ones = torch.rand(len(t), generator=generator, dtype=torch.float64) < chance
    return torch.where(ones, 1.0, t)


def state_maps(
    state: Tensor, prompt_tokens: Tensor, report_tokens: Tensor, space: TokenSpace, prompt_keep: float,
    length_known: float, cut: float, condition_dropout: float, generator: torch.Generator,
) -> StateMaps:  # fmt: skip
    """Maps of a batch.

    Args:
        state: (B,) see `assign_states`.
        prompt_tokens: (B,) int64, leading report tokens that are the prompt.
        report_tokens: (B,) int64, report tokens before the first EOS.
        space: alphabet and layout.
        prompt_keep: probability that the prompt stays clean where the report is noisy (official: .1).
        length_known: probability that every EOS stays clean where the report is noisy: what the sampler sees after
            it has drawn the length first (official: there is no EOS).
        cut: probability that all from a place on is masked where the report alone is asked for: what the sampler sees
            while it writes from left to right. (Each on its own, all of thirty EOS are masked only where nearly every
            word is as well.) The place is uniform over the report's positions, whatever stands there: were it the end,
            the masks would tell where the report ends (docs/study.md).
        condition_dropout: probability that the condition of a `..._given_...` state is hidden, which turns it into the
            `..._alone` state; this is what the second pass of guidance sees.
        generator: on the CPU.

    Raises:
        ValueError: a probability outside [0, 1], or see `check_ends`.
    """
    check_probabilities(prompt_keep=prompt_keep, condition_dropout=condition_dropout)
    check_ends(length_known, cut)
    device = prompt_tokens.device
    state = state.to(device)
    u = torch.rand(3, len(state), generator=generator, dtype=torch.float64).to(device)
    dropped = u[0] < condition_dropout
    state = torch.where(dropped & (state == REPORT_GIVEN_PICTURE), REPORT_ALONE, state)
    state = torch.where(dropped & (state == PICTURE_GIVEN_REPORT), PICTURE_ALONE, state)
    text, image = space.is_text.to(device), space.is_image.to(device)  # (L,)
    index = torch.arange(space.layout.length, device=device) - space.layout.text.start
    prompt = text & (index < prompt_tokens[:, None]) & (u[1] < prompt_keep)[:, None]  # (B, L)
    end = text & (index >= report_tokens[:, None]) & (u[2] < length_known)[:, None]  # (B, L)
    place = (u[2] - length_known) / max(cut, 1e-12)  # (B,) uniform in [0, 1) where a report is cut, else outside
    behind = text & (index >= (place * (space.layout.n_text + 1)).floor()[:, None])

    def among(*states: int) -> Tensor:
        return torch.isin(state, torch.tensor(states, device=device))[:, None]  # (B, 1)

    maskable = text & ~prompt & ~end & among(JOINT, REPORT_GIVEN_PICTURE, REPORT_ALONE)
    maskable = maskable | (image & among(JOINT, PICTURE_GIVEN_REPORT, PICTURE_ALONE))
    hidden = (image & among(REPORT_ALONE)) | (text & among(PICTURE_ALONE))
    covered = behind & ((place >= 0) & (place < 1))[:, None] & maskable & among(REPORT_GIVEN_PICTURE, REPORT_ALONE)
    return StateMaps(maskable, hidden, ~(maskable | hidden), state, covered)
