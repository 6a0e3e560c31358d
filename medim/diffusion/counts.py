"""How many tokens are filled at each evaluation of the network, decided before sampling.

N unknown tokens, S steps. Every plan sums to N exactly and has at least one token per step; S is cut to N.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# r in (0, 1], the share of steps done -> share of tokens known by then
RATIOS: dict[str, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "linear": lambda r, a: r,
    "cosine": lambda r, a: 1 - np.cos(math.pi / 2 * r),  # MaskGIT: few tokens early
    "arccos_ratio": lambda r, a: 1 - np.arccos(r) * 2 / math.pi,  # Halton-MaskGIT
    "shift": lambda r, a: 1 - a * (1 - r) / (1 + (a - 1) * (1 - r)),  # LaViDa; a < 1: many tokens early
}
SCHEDULE_NAMES = ("arccos", *RATIOS)


def token_counts(schedule: str, total: int, steps: int, shift: float) -> Ints:
    """(<= S,) tokens per step.

    Args:
        schedule: `arccos` is the official `adap_sche` (UCSC-VLAA/MeDiM model_eval_inf.py:2394): arccos(r) is used as
            the count of a step, not as the share masked after it; where its rounding allots too much, the last steps
            get less or fall away. The others give the share known after each step (see RATIOS).
        total: N, the tokens unknown at the start.
        steps: S.
        shift: a of `shift`; read by no other schedule.

    Raises:
        ValueError: unknown schedule, S < 1, or a shift that is not positive.
    """
    if schedule not in SCHEDULE_NAMES:
        raise ValueError(f"no unmasking schedule {schedule!r}: params.yaml may name one of {', '.join(SCHEDULE_NAMES)}")
    if steps < 1 or shift <= 0:
        raise ValueError(f"sampling needs steps >= 1 and shift > 0, got {steps} and {shift} (params.yaml)")
    if total == 0:
        return np.zeros(0, np.int64)
    steps = min(steps, total)
    if schedule == "arccos":
        share = np.arccos(np.linspace(1, 0, steps))
        # arccos(1) = 0, so a single step would divide by nothing
        counts = np.full(1, total) if steps == 1 else np.maximum(np.round(share / share.sum() * total), 1)
        known = np.minimum(np.cumsum(counts), total)
        known[-1] = total
    else:
        index = np.arange(steps)
        known = np.round(RATIOS[schedule]((index + 1) / steps, shift) * total)
        known = np.maximum.accumulate(known - index - 1).clip(0) + index + 1  # strictly increasing from >= 1 ...
        known = np.minimum(known, total - (steps - 1 - index))  # ... and leaving one for each later step
    counts = np.diff(known, prepend=0).astype(np.int64)
    return counts[counts > 0]


def spread(counts: Ints, evaluations: int, lead: float) -> Ints:
    """(evaluations,) the counts of a modality with fewer steps, laid out evenly over the evaluations after a lead.

    The last count falls on the last evaluation. Where the lead leaves too few evaluations, counts fall together.

    Args:
        counts: tokens per step of this modality.
        evaluations: evaluations of the whole sample.
        lead: share of the evaluations, in [0, 1), during which this modality waits (MMaDA-Parallel starts at 1/4).
    """
    out = np.zeros(evaluations, np.int64)
    first = min(int(lead * evaluations), evaluations - 1)
    slots = first + np.ceil((np.arange(len(counts)) + 1) * (evaluations - first) / max(1, len(counts))) - 1
    np.add.at(out, slots.astype(np.int64), counts)
    return out
