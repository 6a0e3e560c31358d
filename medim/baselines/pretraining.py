"""The first training of a method, on captioned pictures: what the public systems take from released checkpoints.

The paper's systems begin from general priors: R2Gen and R2GenCMN from a ResNet of ImageNet, BLIP from image-text
pretraining, BLLM from EVA's transformer, a Q-Former and Vicuna, LLaVA-Rad from BiomedCLIP and Vicuna; MeDiM's decoder
begins from its own. Where no released weights are at hand, a method is first trained on the pairs of
params.yaml:train_baseline.settings.<method>.pretraining; the default gives report writers the medical training pairs
that MeDiM's towers have, not the drawings that MeDiM's decoder has as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medim.training import OnLog, Optimisation

PRETRAINING = "pretraining"  # folder of its checkpoints, in a training's work folder
PREFIX = "pretraining/"  # of its curves


@dataclass(frozen=True)
class Contrast:
    """Sizes of what pictures are compared with in a contrastive pretraining; the values stand in params.yaml."""

    width: int  # channels of the text side, and of what is seen at a patch
    blocks: int  # residual convolutions over the tokens
    summary: int  # numbers of the space where pictures and texts are compared

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: names one that is not positive.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"contrast.{name} must be at least 1, got {value} (params.yaml:train_baseline)")


@dataclass(frozen=True)
class WriterPretraining:
    """The first training of a report writer."""

    datasets: tuple[str, ...]  # of data/pairs; equal numbers in a batch
    contrast: (
        Contrast | None
    )  # the picture encoder learns which text is whose; null: all learns by the writer's own loss
    optim: Optimisation


@dataclass(frozen=True)
class Pretraining:
    """First steps on other pairs."""

    datasets: tuple[str, ...]  # of data/pairs, for methods that read tokens of data/tokens; equal numbers in a batch
    optim: Optimisation


def log_apart(on_log: OnLog) -> OnLog:
    """An `on_log` for the pretraining: the names of its scalars begin with PREFIX."""

    def log(step: int, values: Mapping[str, float]) -> None:
        on_log(step, {f"{PREFIX}{name}": value for name, value in values.items()})

    return log


def pairs_seen(optim: Optimisation) -> int:
    """Pairs that a training draws, repeated ones counted as often."""
    return optim.steps * optim.batch_size


def check_one_start(prior: bool, starts: Mapping[str, str | None]) -> None:
    """Hold first weights to one source.

    Args:
        prior: whether a pretraining gives them, this training's or an earlier one's.
        starts: setting -> released weights, None where there are none.

    Raises:
        ValueError: both give some; names the settings.
    """
    given = [name for name, path in starts.items() if path is not None]
    if prior and given:
        raise ValueError(
            f"pretraining and {', '.join(given)} both give first weights, and released ones are a prior already: set "
            f"pretraining: null (and give no prior), or {', '.join(f'{name}: null' for name in given)}"
        )
