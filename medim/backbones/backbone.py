"""What every backbone of the masked diffusion offers, so that model, loss, sampler and questions know none by name.

Letters: B batch, L positions of the layout, n codes, d channels of a code vector.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medim.backbones.towers import TowerInputs
from medim.diffusion.denoise import ModalityLogits
from medim.vocab import SequenceLayout, SharedVocab


class BackboneRecipe(Protocol):
    """Settings that make a backbone; `type(recipe)(**recipe.to_dict())` is the same recipe."""

    def build(self, vocab: SharedVocab, layout: SequenceLayout) -> Backbone:
        """A backbone, freshly initialised from torch's default generator."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""


class Backbone(nn.Module):
    """A network that implements `medim.diffusion.denoise.Denoise` over the shared ids of a layout."""

    settings: BackboneRecipe
    layout: SequenceLayout
    towers: TowerInputs | None  # what ranks finished pairs (medim.questions); None: nothing does

    @abstractmethod
    def forward(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        """See `Denoise`: (B, L) ids, (B,) times and (B, L) wanted positions -> logits there."""

    def check_length(self, xt: Tensor, stage: str) -> None:
        """Hold ids (B, L) to the layout; `stage`: what is to be run again.

        Raises:
            ValueError: another length.
        """
        if xt.shape[1] != self.layout.length:
            raise ValueError(
                f"the backbone was built for {self.layout.length} positions, got {xt.shape[1]}: "
                f"other tokens? Rerun `dvc repro {stage}`"
            )

    @abstractmethod
    def start_codes(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Set the first embedding rows of codes as the settings say, from the VQGAN's codebook (n, d)."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The repeated parts, first to last: what is sharded apart (medim.distributed)."""
