"""How many of the drawn tokens are kept, and which: the commit rules.

Shapes: B samples, L tokens. `count` is MaskGIT's; the others decide by confidence c, the drawn token's probability.
Threshold and factor: Fast-dLLM (arXiv:2505.22618); profile: Fast-dLLM++. The bounds behind `factor` (f <= 1) and
`profile` (margin >= 0) promise the greedy result only for a network whose conditionals come from one joint.
"""

import math

import torch
from torch import Tensor

COMMITS = ("count", "threshold", "factor", "profile")


def select_top(scores: Tensor, eligible: Tensor, num: Tensor) -> Tensor:
    """(B, L) bool: the `num` eligible tokens of highest score; equal scores go to the earlier position.

    Args:
        scores: (B, L).
        eligible: (B, L) bool.
        num: (B,) tokens wanted; more than are eligible selects all of them.
    """
    ranked = torch.sort(scores.masked_fill(~eligible, -math.inf), dim=-1, descending=True, stable=True).indices
    # an eligible token may itself score -inf, so eligibility decides before the score does
    by_right = torch.sort(eligible.gather(-1, ranked).int(), dim=-1, descending=True, stable=True).indices
    ranked = ranked.gather(-1, by_right)
    first = torch.arange(scores.shape[1], device=scores.device) < num[:, None]
    return torch.zeros_like(eligible).scatter(-1, ranked, first) & eligible


def num_confident(rule: str, confidence: Tensor, eligible: Tensor, level: float) -> Tensor:
    """(B,) tokens that an adaptive rule commits: at least one while any is eligible.

    Args:
        rule: with confidences c_(1) >= c_(2) >= ...: `threshold` takes all c >= level (tau); `factor` the largest n
            with (n + 1) (1 - c_(n)) < level; `profile` the largest n with sum_(i <= n) c_(i) - (n - 1) - (1 - c_(n)) >
            level.
        confidence: (B, L) in [0, 1].
        eligible: (B, L) bool.
        level: the rule's number.

    Raises:
        ValueError: not an adaptive rule.
    """
    c = confidence.masked_fill(~eligible, -1.0).sort(-1, descending=True).values
    n = torch.arange(1, c.shape[1] + 1, device=c.device)
    if rule == "threshold":
        good = c >= level
    elif rule == "factor":
        good = (n + 1) * (1 - c) < level
    elif rule == "profile":
        good = c.cumsum(-1) - (n - 1) - (1 - c) > level
    else:
        raise ValueError(f"no adaptive commit rule {rule!r}: params.yaml may name one of {', '.join(COMMITS)}")
    good &= c >= 0  # ineligible tokens carry -1
    return torch.where(good, n, 0).amax(-1).clamp(min=1).minimum(eligible.sum(-1))
