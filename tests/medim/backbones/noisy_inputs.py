"""Inputs of a backbone, and a backbone that nothing of its start hides in, for the tests beside it."""

import torch
from torch import Tensor, nn

from medim.vocab import SequenceLayout, SharedVocab


def shaken(model: nn.Module, by: float) -> nn.Module:
    """Every parameter moved, so that nothing is 0 or 1 by its start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model


def noisy(vocab: SharedVocab, layout: SequenceLayout, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids with masks, times, and which positions are masked."""
    g = torch.Generator().manual_seed(2)
    x = torch.randint(vocab.n_text, (batch, layout.length), generator=g)
    x[:, layout.image] = vocab.from_codes(torch.randint(vocab.n_image, (batch, layout.n_image), generator=g))
    wanted = torch.rand(x.shape, generator=g) < 0.5
    wanted[:, [0, layout.image.stop]] = False
    return x.masked_fill(wanted, vocab.mask_id), torch.rand(batch, generator=g), wanted
