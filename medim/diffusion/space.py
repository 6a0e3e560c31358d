"""What a sampler must know of the tokens: where they stand, which ids exist, which may be emitted.

Shapes: B samples, L tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medim.vocab import IMAGE, TEXT, SequenceLayout, SharedVocab


@dataclass(frozen=True, eq=False)
class TokenSpace:
    """The alphabet and the layout, once per model.

    Attributes:
        layout: positions of picture and report.
        vocab: the shared ids.
        allowed_text: (n_text,) bool, report ids that a sampler may emit (see TextTokenizer.allowed).
        eos_id: report id that ends and pads a report; None where reports have no end.
        last_characters: of what each report id writes, "" for nothing (see TextTokenizer.last_characters); empty where
            nobody asks for sentences.
    """

    layout: SequenceLayout
    vocab: SharedVocab
    allowed_text: Tensor
    eos_id: int | None
    last_characters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: `allowed_text` is of another vocabulary, or forbids everything or the end.
        """
        if self.allowed_text.shape != (self.vocab.n_text,) or self.allowed_text.dtype != torch.bool:
            raise ValueError(
                f"allowed_text must be bool of shape ({self.vocab.n_text},), got {self.allowed_text.dtype} "
                f"{tuple(self.allowed_text.shape)}: pass TextTokenizer.allowed() of the model's own tokenizer"
            )
        if not bool(self.allowed_text.any()):
            raise ValueError(f"allowed_text forbids all {self.vocab.n_text} report ids: pass TextTokenizer.allowed()")
        if self.eos_id is not None and not bool(self.allowed_text[self.eos_id]):
            raise ValueError(f"eos_id {self.eos_id} is forbidden by allowed_text: pass TextTokenizer.allowed()")

    @cached_property
    def is_text(self) -> Tensor:
        """(L,) bool, on the CPU."""
        return self.layout.modality() == TEXT

    @cached_property
    def is_image(self) -> Tensor:
        """(L,) bool, on the CPU."""
        return self.layout.modality() == IMAGE

    @property
    def mask_id(self) -> int:
        """Id of [MASK]."""
        return self.vocab.mask_id

    def check(self, x: Tensor) -> None:
        """Check a canvas of shared ids.

        Raises:
            ValueError: wrong length, [MASK] at BOI or EOI, or an id of the other modality.
        """
        if x.dim() != 2 or x.shape[1] != self.layout.length:
            raise ValueError(f"tokens must be (B, {self.layout.length}) for {self.layout}, got {tuple(x.shape)}")
        fixed = x[:, (~(self.is_text | self.is_image)).to(x.device)]
        if bool((fixed == self.mask_id).any()):
            raise ValueError(f"BOI and EOI are inputs, but hold [MASK] = {self.mask_id}: build x with their ids")
        text, image = x[:, self.layout.text], x[:, self.layout.image]
        self.vocab.check_text(text[text != self.mask_id])
        self.vocab.to_codes(image[image != self.mask_id])
