"""Worlds small enough to know every answer: 2 codes and 2 report tokens with 3 values each, or an oracle."""

import itertools

import pytest
import torch
from torch import Tensor

from medim.diffusion.denoise import ModalityLogits
from medim.diffusion.settings import SamplerSettings, official_settings
from medim.diffusion.space import TokenSpace
from medim.vocab import SequenceLayout, SharedVocab


class Joint:
    """A joint distribution over 3^4 outcomes, and the network that knows its conditionals exactly."""

    def __init__(self, seed: int = 0) -> None:
        self.space = TokenSpace(
            SequenceLayout(2, 2), SharedVocab(5, 3), torch.tensor([True, True, True, False, False]), None
        )
        values = torch.tensor(list(itertools.product(range(3), repeat=4)))  # (81, 4): 2 codes, 2 report tokens
        self.outcomes = torch.cat([self.space.vocab.from_codes(values[:, :2]), values[:, 2:]], 1)
        generator = torch.Generator().manual_seed(seed)
        self.p = torch.rand(81, generator=generator, dtype=torch.float64) ** 3 + 0.02
        self.p /= self.p.sum()
        self.times: list[Tensor] = []

    def blank(self, num: int) -> Tensor:
        x = torch.full((num, 6), self.space.mask_id)
        x[:, 0], x[:, 3] = 3, 4
        return x

    def tokens(self, x: Tensor) -> Tensor:
        return x[:, [1, 2, 4, 5]]

    def counts(self, x: Tensor) -> Tensor:
        code = torch.tensor([27, 9, 3, 1])
        values = self.tokens(x).clone()
        values[:, :2] -= self.space.vocab.image_offset
        return torch.bincount((values * code).sum(1), minlength=81)

    def weights(self, xt: Tensor) -> Tensor:
        """(B, 81) p(outcome, what is known)."""
        known = self.tokens(xt)[:, None]
        return self.p * ((known == self.space.mask_id) | (known == self.outcomes)).all(-1)

    def __call__(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        self.times.append(t)
        weights = self.weights(xt)
        text = torch.zeros(len(xt), 6, 5, dtype=torch.float64)
        image = torch.zeros(len(xt), 6, 3, dtype=torch.float64)
        for column, place in enumerate((1, 2, 4, 5)):
            for value in range(3):
                shared = value + (self.space.vocab.image_offset if column < 2 else 0)
                chance = (weights * (self.outcomes[:, column] == shared)).sum(1)
                (image if column < 2 else text)[:, place, value] = chance
        return ModalityLogits(text[positions & self.space.is_text].log(), image[positions & self.space.is_image].log())


class Noise:
    """A network with random, input-dependent logits (sums per sample, so that batches do not matter)."""

    def __init__(self, space: TokenSpace, seed: int = 0) -> None:
        self.space = space
        g = torch.Generator().manual_seed(seed)
        layout, vocab = space.layout, space.vocab
        self.embed = torch.randn(vocab.size, 8, generator=g, dtype=torch.float64)
        self.place = torch.randn(layout.length, 8, generator=g, dtype=torch.float64)
        self.text = torch.randn(8, vocab.n_text, generator=g, dtype=torch.float64)
        self.image = torch.randn(8, vocab.n_image, generator=g, dtype=torch.float64)
        self.batches: list[int] = []

    def __call__(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        assert bool((xt[positions] == self.space.mask_id).all())
        assert t.dtype == torch.float32 and bool(((t >= 0) & (t <= 1)).all())
        self.batches.append(len(xt))
        rows = [torch.tanh(self.embed[x].mean(0) * 3 + self.place + float(s)) for x, s in zip(xt, t, strict=True)]
        h = torch.stack(rows)
        dot = [(h[positions & m][:, :, None] * w).sum(1) for m, w in (
            (self.space.is_text, self.text), (self.space.is_image, self.image))]  # fmt: skip
        return ModalityLogits(*dot)


class Oracle:
    """Knows the one true sequence."""

    def __init__(self, space: TokenSpace, truth: Tensor) -> None:
        self.space, self.truth = space, truth

    def __call__(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        truth = self.truth.expand(len(xt), -1)
        text, image = truth[positions & self.space.is_text], truth[positions & self.space.is_image]
        vocab = self.space.vocab
        return ModalityLogits(
            torch.nn.functional.one_hot(text, vocab.n_text) * 50.0,
            torch.nn.functional.one_hot(vocab.to_codes(image), vocab.n_image) * 50.0,
        )


@pytest.fixture
def joint():
    return Joint()


@pytest.fixture
def space():
    """16 codes, 10 report tokens of 12 ids: 0 is EOS, 10 and 11 are BOI and EOI."""
    allowed = torch.ones(12, dtype=torch.bool)
    allowed[10:] = False
    return TokenSpace(SequenceLayout(10, 16), SharedVocab(12, 7), allowed, 0)


@pytest.fixture
def blank(space):
    def make(num: int) -> Tensor:
        x = torch.full((num, space.layout.length), space.mask_id)
        x[:, 0], x[:, 17] = 10, 11
        return x

    return make


@pytest.fixture
def random_net(space):
    return Noise(space)


@pytest.fixture
def oracle(space):
    text = torch.arange(10).roll(-1)  # 1 .. 9, EOS
    image = space.vocab.from_codes(torch.arange(16) % 7)
    truth = torch.cat([torch.tensor([10]), image, torch.tensor([11]), text])[None]
    return Oracle(space, truth)


@pytest.fixture
def settings():
    """Plain settings; tests replace what they are about."""

    def make(**changes: object) -> SamplerSettings:
        base = vars(official_settings(8)) | {
            "pool": "modality", "time": "fraction", "text_guidance": 0.0, "image_guidance": 0.0,
            "guidance_ramp": "constant", "choice_temperature": 1.0,
        }  # fmt: skip
        return SamplerSettings(**(base | changes))

    return make
