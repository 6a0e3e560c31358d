"""The transformer that R2Gen and R2GenCMN share: patch features in, words out, one pass or one word at a time.

Source: cuhksz-nlp/R2Gen, modules/encoder_decoder.py, and zhjohnchan/R2GenCMN, modules/base_cmn.py: the encoder-decoder
of Vaswani et al. 2017 (arXiv:1706.03762) with norms before each part (and one behind the last) that divide by the
unbiased standard deviation plus eps. What the two add to it stands in r2gen_network.py and r2gen_cmn_network.py.
Here the decoder keeps the keys and values of words it has seen, and those of patches once for all beams of a study; the
whole text (training) and the next word (writing) are one function, `EncoderDecoder.forward`.
Differs: words are embedded once, where R2Gen embeds them twice with two dropout masks; one dropout rate for all but the
patch features, where the published attentions keep 0.1 whatever the rate.

Letters: B studies, R rows (B times the beams of each, rows of a study together), n patches, T words now, t before, D
width, h heads, V word ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medim.baselines.visual_extractor import Features

EPS = 1e-6  # added to the standard deviation
MASKED = -1e9  # score of what may not be seen
LONGEST_WAVE = 10_000.0


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of the encoder-decoder; the values stand in params.yaml."""

    width: int  # D; published: 512
    inner: int  # of the feed-forward parts; published: 512
    heads: int  # published: 8
    layers: int  # of the encoder, and as many of the decoder; published: 3
    dropout: float  # published: 0.1
    feature_dropout: float  # of embedded patch features; published: 0.5

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: names the value that is impossible.
        """
        for name in ("width", "inner", "heads", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoder.{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"decoder.width must be even and a multiple of heads, got {self.width} and {self.heads}")
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"decoder.{name} must lie in [0, 1), got {getattr(self, name)}")


class KeyValues(NamedTuple):
    """Keys and values of an attention, each (rows, h, length, D / h); a shared memory's have no rows."""

    keys: Tensor
    values: Tensor

    def rows(self, chosen: Tensor) -> KeyValues:
        """Those of the chosen rows."""
        return KeyValues(self.keys.index_select(0, chosen), self.values.index_select(0, chosen))


Projected = tuple[Tensor, ...]  # what weights alone decide, made once a batch; KeyValues of a shared memory are


@dataclass(frozen=True)
class DecodingState:
    """What a decoder knows of R texts that it has read or written t words of."""

    source: tuple[KeyValues, ...]  # per layer, of the B studies' patches
    source_mask: Tensor | None  # (B, 1, 1, n) bool, which patches there are; None: all
    past: tuple[KeyValues | None, ...]  # per layer, of the R texts' words; None: none yet
    length: int  # t
    memory: Tensor  # (R, M) what a network carries from word to word; M may be 0
    projected: Projected | None  # see `EncoderDecoder.project`


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(R, T, D) -> (R, h, T, D / h)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def standardise(x: Tensor) -> Tensor:
    """Less the mean and divided by the unbiased standard deviation plus EPS, over the last dimension."""
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPS)


def sinusoids(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """(count, width) codes of the positions from `first`: sines in even, cosines in odd places."""
    position = torch.arange(first, first + count, device=device).float()[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device).float() * -(math.log(LONGEST_WAVE) / width))
    angle = position * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def init_matrices(module: nn.Module) -> None:
    """Xavier-uniform matrices, as published; biases and vectors stay as they are."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class StdNorm(nn.Module):
    """gamma * standardised x + beta; what the words before say (`ConditionalNorm`) is not looked at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, _condition: Tensor | None = None) -> Tensor:
        """(…, D) -> (…, D)."""
        return self.gamma * standardise(x) + self.beta


class Attention(nn.Module):
    """Multi-head attention whose keys and values are made apart."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(sizes.width, sizes.width) for _ in range(4))

    def keys_values(self, x: Tensor) -> KeyValues:
        """Of x (R, T, D)."""
        return KeyValues(split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads))

    def forward(self, x: Tensor, seen: KeyValues, mask: Tensor | None) -> Tensor:
        """What x (R, T, D) finds in `seen`, which may belong to B studies of R / B rows each.

        Args:
            x: asks.
            seen: R or B rows.
            mask: bool, may be seen; broadcasts to (rows of seen, h, questions of each, length); None: all.
        """
        asked = split_heads(self.query(x.reshape(len(seen.keys), -1, x.shape[-1])), self.heads)
        scores = asked @ seen.keys.transpose(-2, -1) / math.sqrt(asked.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, MASKED)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        found = (weights @ seen.values).transpose(1, 2).flatten(2)
        answer: Tensor = self.out(found)
        return answer.view(x.shape)


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(sizes.width, sizes.inner), nn.Linear(sizes.inner, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        out: Tensor = self.second(self.dropout(F.relu(self.first(x))))
        return out


class EncoderLayer(nn.Module):
    """Patches look at patches."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.attention, self.inner = Attention(sizes), FeedForward(sizes)
        self.norms = nn.ModuleList(StdNorm(sizes.width) for _ in range(2))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, n, D) -> (B, n, D); mask (B, 1, 1, n) bool."""
        asked = self.norms[0](x)
        x = x + self.dropout(self.attention(asked, self.attention.keys_values(asked), mask))
        return x + self.dropout(self.inner(self.norms[1](x)))


class Encoder(nn.Module):
    """Layers and the norm behind the last."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))
        self.norm = StdNorm(sizes.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, n, D) -> (B, n, D)."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class DecoderLayer(nn.Module):
    """Words look at words before them, then at patches."""

    def __init__(self, sizes: DecoderSizes, norm: Callable[[], nn.Module]) -> None:
        """`norm` makes one of the three norms; see `StdNorm`."""
        super().__init__()
        self.own, self.source, self.inner = Attention(sizes), Attention(sizes), FeedForward(sizes)
        self.norms = nn.ModuleList(norm() for _ in range(3))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self, x: Tensor, past: KeyValues | None, source: KeyValues, source_mask: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, KeyValues]:
        """x (R, T, D) behind t words -> the same and keys and values of t + T words.

        Args:
            x: the T words.
            past: keys and values of the t words before.
            source: keys and values of B studies' patches.
            source_mask: see `DecodingState`.
            condition: what the norms are told of each of the R T words.
        """
        asked = self.norms[0](x, condition)
        seen = self.own.keys_values(asked)
        if past is not None:
            seen = KeyValues(torch.cat([past.keys, seen.keys], 2), torch.cat([past.values, seen.values], 2))
        new, length = x.shape[1], seen.keys.shape[2]
        before = torch.ones(new, length, dtype=torch.bool, device=x.device).tril(length - new) if new > 1 else None
        x = x + self.dropout(self.own(asked, seen, before))
        x = x + self.dropout(self.source(self.norms[1](x, condition), source, source_mask))
        return x + self.dropout(self.inner(self.norms[2](x, condition))), seen


class EncoderDecoder(nn.Module):
    """Patch features and the words before -> logits of the next word. A subclass adds its memory by the methods below.

    Args:
        sizes: see `DecoderSizes`.
        feature_width: d of the patch features.
        num_ids: V, with the 0 of begin, end and padding.
        norm: makes a norm of the decoder's layers.
    """

    sizes: Any  # the dataclass that a subclass is made of

    def __init__(
        self, sizes: DecoderSizes, feature_width: int, num_ids: int, norm: Callable[[], nn.Module]
    ) -> None:  # fmt: skip
        super().__init__()
        self.decoder_sizes = sizes
        self.features = nn.Linear(feature_width, sizes.width)
        self.encoder = Encoder(sizes)
        self.words = nn.Embedding(num_ids, sizes.width)
        self.layers = nn.ModuleList(DecoderLayer(sizes, norm) for _ in range(sizes.layers))
        self.norm, self.logits = StdNorm(sizes.width), nn.Linear(sizes.width, num_ids)
        self.dropout, self.feature_dropout = nn.Dropout(sizes.dropout), nn.Dropout(sizes.feature_dropout)

    def project(self) -> Projected | None:
        """What all texts of a batch share: made of weights alone, so once a batch and not once a word."""
        return None

    def see(self, patches: Tensor, _projected: Projected | None) -> Tensor:
        """What the encoder is given for embedded patches (B, n, D)."""
        return patches

    def first_memory(self, rows: int) -> Tensor:
        """(rows, M): what is carried before the first word."""
        return self.logits.weight.new_zeros(rows, 0)

    def read(
        self, x: Tensor, memory: Tensor, _projected: Projected | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        """Embedded words (R, T, D) and memory before them -> words, condition of the norms, memory behind them."""
        return x, None, memory

    def place(self, x: Tensor, first: int) -> Tensor:
        """Embeddings (R, T, D) with the codes of their positions from `first`, then dropout."""
        out: Tensor = self.dropout(x + sinusoids(first, x.shape[1], x.shape[2], x.device))
        return out

    def encode(self, features: Features, projected: Projected | None) -> Tensor:
        """(B, n, d) -> (B, n, D) what the encoder makes of patch features."""
        patches = self.feature_dropout(F.relu(self.features(features.values)))
        out: Tensor = self.encoder(self.see(patches, projected), _key_mask(features.present))
        return out

    def open(self, encoded: Tensor, present: Tensor | None, projected: Projected | None) -> DecodingState:
        """The state before the first word, of encoded patches (B, n, D); `present` as in `Features`."""
        source = tuple(cast(DecoderLayer, layer).source.keys_values(encoded) for layer in self.layers)
        memory = self.first_memory(len(encoded))
        return DecodingState(source, _key_mask(present), (None,) * len(self.layers), 0, memory, projected)

    def start(self, features: Features) -> DecodingState:
        """The state before the first word."""
        projected = self.project()
        return self.open(self.encode(features, projected), features.present, projected)

    def forward(self, ids: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read T words.

        Args:
            ids: (R, T) int64; the first word of a text is 0.
            state: behind the words before.

        Returns:
            Logits (R, T, V) of the word behind each, and the state behind the last.
        """
        x = self.place(self.words(ids) * math.sqrt(self.decoder_sizes.width), state.length)
        x, condition, memory = self.read(x, state.memory, state.projected)
        past: list[KeyValues] = []
        for layer, before, source in zip(self.layers, state.past, state.source, strict=True):
            x, seen = layer(x, before, source, state.source_mask, condition)
            past.append(seen)
        state = replace(state, past=tuple(past), length=state.length + ids.shape[1], memory=memory)
        return self.logits(self.norm(x)), state

    def step(self, tokens: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """See `medim.baselines.beam_search.StepDecoder`."""
        logits, state = self(tokens[:, None], state)
        return logits[:, -1].float().log_softmax(-1), state

    def reorder(self, state: DecodingState, rows: Tensor, items: Tensor) -> DecodingState:
        """See `medim.baselines.beam_search.StepDecoder`; patches are copied only when studies have left."""
        source, mask = state.source, state.source_mask
        if len(items) != len(source[0].keys):
            source = tuple(one.rows(items) for one in source)
            mask = None if mask is None else mask.index_select(0, items)
        past = tuple(None if one is None else one.rows(rows) for one in state.past)
        return replace(state, source=source, source_mask=mask, past=past, memory=state.memory.index_select(0, rows))


def _key_mask(present: Tensor | None) -> Tensor | None:
    return None if present is None else present[:, None, None, :]
