"""A MeDiM that is certain of one pair, and the tiny models of tests/medim."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from medim.diffusion.denoise import ModalityLogits

sys.path.append(str(Path(__file__).parents[1] / "medim"))  # where the tiny models are

import tiny_medim as tiny
from certain_reader import certain_reader

__all__ = ["Oracle", "certain_reader", "oracle", "tiny"]


class Oracle(nn.Module):
    """A backbone that is certain of one text and one picture."""

    def __init__(self, text: Tensor, codes: Tensor, n_text: int) -> None:
        super().__init__()
        self.text, self.codes, self.n_text = text, codes, n_text
        self.anchor = nn.Parameter(torch.zeros(1))  # says on which device the model is

    def forward(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        rows = self.text.expand(len(xt), -1)[positions[:, tiny.LAYOUT.text]]
        codes = self.codes.expand(len(xt), -1)[positions[:, tiny.LAYOUT.image]]
        return ModalityLogits(
            100.0 * nn.functional.one_hot(rows, self.n_text), 100.0 * nn.functional.one_hot(codes, tiny.CODES)
        )


def oracle(text: str):
    """The tiny MeDiM, certain of a text."""
    model = tiny.medim()
    model.backbone = Oracle(
        torch.tensor(model.tokenizer.encode(text, tiny.LAYOUT.n_text)), torch.arange(9), model.vocab.n_text
    )
    return model
