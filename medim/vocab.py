"""One id space for report tokens, [MASK] and image codes (paper Sec. 2.1), and one place for their order in a sequence.

    [0, n_text)                 report tokens (their tokenizer's own ids; special tokens are among them)
    n_text                      [MASK], the absorbing state m of Eq. 3
    [n_text + 1, size)          VQGAN codes, shifted by n_text + 1

The order is the released checkpoint's: 32003 + 1 + 8192 = 40196 embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TEXT, IMAGE, FIXED = 0, 1, -1  # values of `SequenceLayout.modality`


@dataclass(frozen=True)
class SharedVocab:
    """The only place where an id is shifted."""

    n_text: int
    n_image: int

    @property
    def mask_id(self) -> int:
        """Id of [MASK]."""
        return self.n_text

    @property
    def image_offset(self) -> int:
        """Shared id of image code 0."""
        return self.n_text + 1

    @property
    def size(self) -> int:
        """Number of shared ids, [MASK] included: rows of the embedding."""
        return self.n_text + 1 + self.n_image

    def from_codes(self, codes: Tensor) -> Tensor:
        """VQGAN codes in [0, n_image) -> shared ids, same shape.

        Raises:
            ValueError: a code lies outside the codebook.
        """
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.n_image):
            raise ValueError(
                f"image codes must lie in [0, {self.n_image}), got [{int(codes.min())}, {int(codes.max())}]: "
                f"was the VQGAN trained with another codebook size? Rerun `dvc repro tokenize_pairs`"
            )
        return codes + self.image_offset

    def to_codes(self, ids: Tensor) -> Tensor:
        """Shared ids of image positions -> VQGAN codes, same shape.

        Raises:
            ValueError: an id is not an image code ([MASK] and report tokens included).
        """
        codes = ids - self.image_offset
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.n_image):
            raise ValueError(
                f"image positions must hold ids in [{self.image_offset}, {self.size}), "
                f"got [{int(ids.min())}, {int(ids.max())}]: the sample is unfinished or of the other modality"
            )
        return codes

    def to_masked_codes(self, ids: Tensor) -> Tensor:
        """Shared ids of image positions, [MASK] among them -> VQGAN codes, same shape; [MASK] is `n_image`."""
        return torch.where(ids == self.mask_id, self.n_image, ids - self.image_offset)

    def check_text(self, ids: Tensor) -> Tensor:
        """Report token ids, unchanged: they are shared ids already.

        Raises:
            ValueError: an id is [MASK] or an image code.
        """
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.n_text):
            raise ValueError(
                f"report tokens must lie in [0, {self.n_text}), got [{int(ids.min())}, {int(ids.max())}]: "
                f"another tokenizer? Rerun `dvc repro tokenize_pairs`"
            )
        return ids


@dataclass(frozen=True)
class SequenceLayout:
    """Where a pair stands in the sequence of the network: BOI | image | EOI | report.

    Image first and report last is the official network order. BOI and EOI are fixed inputs: never masked, never
    predicted. `n_text` report tokens (the end is padded with EOS, which is predicted), `n_image` codes in raster order.
    """

    n_text: int
    n_image: int

    @property
    def length(self) -> int:
        """Sequence length L."""
        return self.n_image + self.n_text + 2

    @property
    def image(self) -> slice:
        """Positions of the image codes."""
        return slice(1, 1 + self.n_image)

    @property
    def text(self) -> slice:
        """Positions of the report tokens."""
        return slice(2 + self.n_image, self.length)

    def modality(self) -> Tensor:
        """(L,) int8: TEXT, IMAGE or FIXED per position."""
        out = torch.full((self.length,), FIXED, dtype=torch.int8)
        out[self.image], out[self.text] = IMAGE, TEXT
        return out
