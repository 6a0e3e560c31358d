"""LoRA (Hu et al. 2021, arXiv:2106.09685, Eq. 3): a frozen linear map W plus (alpha / rank) B A with small A, B.

A starts as in the authors' code (Kaiming uniform), B at 0, so that nothing changes before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class LoraSettings:
    """The values stand in params.yaml."""

    rank: int
    alpha: float
    dropout: float  # of what A sees, while training
    targets: tuple[str, ...]  # patterns of names, as `*.q_proj`

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.targets:
            raise ValueError(f"lora needs rank >= 1, alpha > 0, dropout in [0, 1) and targets, got {self}")


class LoraLinear(nn.Linear):
    """A linear map with its low-rank change; weight and bias keep their names and stand still."""

    def __init__(self, base: nn.Linear, settings: LoraSettings) -> None:
        super(nn.Linear, self).__init__()  # the weights are the base's own
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        self.down = nn.Parameter(self.weight.new_empty(settings.rank, self.in_features))
        self.up = nn.Parameter(self.weight.new_zeros(self.out_features, settings.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = settings.alpha / settings.rank
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias) + self.scale * linear(linear(self.dropout(x), self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain linear map that does the same in eval mode."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, self.weight.device)
        plain.weight = nn.Parameter(self.weight + self.scale * self.up @ self.down)
        plain.bias = self.bias
        return plain


def add_lora(module: nn.Module, settings: LoraSettings) -> int:
    """Replace the linear maps whose names match; returns how many.

    Raises:
        ValueError: a pattern matches none.
    """
    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, LoraLinear)]
    for pattern in settings.targets:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"lora.targets: {pattern!r} matches no linear map of {type(module).__name__}: {names[:8]}")
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in settings.targets)]
    for name in chosen:
        base = module.get_submodule(name)
        assert isinstance(base, nn.Linear)
        module.set_submodule(name, LoraLinear(base, settings))
    return len(chosen)


def merge_lora(module: nn.Module) -> int:
    """Put plain linear maps in the place of all `LoraLinear`; returns how many."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, LoraLinear)]
    for name, part in found:
        module.set_submodule(name, part.merged())
    return len(found)


def train_only(module: nn.Module, also: Sequence[str]) -> None:
    """Let only LoRA learn, and the parts named in `also`."""
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, LoraLinear):
            part.down.requires_grad_(True)
            part.up.requires_grad_(True)
    for name in also:
        module.get_submodule(name).requires_grad_(True)
