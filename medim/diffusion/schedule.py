"""How fast tokens are masked: alpha(t), the probability that a token is still clean at time t (paper Eq. 3-6).

Time runs from 0 (clean) to 1 (all masked). B samples. `LogLinear` is the official one (UCSC-VLAA/MeDiM
noise_schedule.py); cosine and polynomial follow MD4 (Shi et al. 2024, Table 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A decreasing retention probability with alpha(0) = 1 and alpha(1) ~ 0."""

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) P(still clean at t)."""
        ...

    def dalpha(self, t: Tensor) -> Tensor:
        """(B,) derivative of alpha, negative."""
        ...

    def time(self, move_chance: Tensor) -> Tensor:
        """(B,) the t in [0, 1] at which 1 - alpha(t) is `move_chance`: the inverse, cut to the range."""
        ...


def sigma(schedule: Schedule, t: Tensor) -> Tensor:
    """(B,) total noise -log alpha(t), what the official network is conditioned on; infinite where alpha is 0."""
    return -schedule.alpha(t).log()


def nelbo_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """(B,) the positive weight -alpha'(t) / (1 - alpha(t)) of the cross-entropy at masked tokens (Eq. 6)."""
    return -schedule.dalpha(t) / (1 - schedule.alpha(t))


@dataclass(frozen=True)
class LogLinear:
    """alpha = 1 - (1 - eps) t, so that sigma = -log1p(-(1 - eps) t) stays finite; its weight is exactly 1 / t."""

    eps: float

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return 1 - (1 - self.eps) * t

    def dalpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return torch.full_like(t, self.eps - 1)

    def time(self, move_chance: Tensor) -> Tensor:
        """See `Schedule`."""
        return (move_chance / (1 - self.eps)).clamp(0, 1)


@dataclass(frozen=True)
class Cosine:
    """alpha = 1 - cos(pi (1 - t) / 2): most tokens are masked late."""

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return 1 - torch.cos(math.pi / 2 * (1 - t))

    def dalpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))

    def time(self, move_chance: Tensor) -> Tensor:
        """See `Schedule`."""
        return 1 - torch.arccos(move_chance.clamp(0, 1)) * 2 / math.pi


@dataclass(frozen=True)
class Polynomial:
    """alpha = 1 - t^power, with weight power / t."""

    power: float

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return 1 - t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return -self.power * t ** (self.power - 1)

    def time(self, move_chance: Tensor) -> Tensor:
        """See `Schedule`."""
        return move_chance.clamp(0, 1) ** (1 / self.power)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "log_linear": lambda: LogLinear(1e-3),  # the official eps
    "linear": lambda: LogLinear(0.0),
    "cosine": Cosine,
    "quadratic": lambda: Polynomial(2.0),
    "cubic": lambda: Polynomial(3.0),
}


def get_schedule(name: str) -> Schedule:
    """The schedule of this name.

    Raises:
        ValueError: there is none; names those that exist.
    """
    if name not in SCHEDULES:
        raise ValueError(f"no noise schedule {name!r}: params.yaml may name one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]()
