"""A language model that goes on from a prompt of embeddings, and how its texts are decoded: LLaVA-Rad's and BLLM's.

A prompt is a row (P, D) of embeddings: those of its words and, in their midst, the picture's. Rows of a batch may
differ in length. They are padded on the right, so that every position sees at least itself; positions count what is
there, so that a text does not depend on the batch it is written in.

Letters: B texts of a batch, P positions of a prompt, T tokens of a text, D width, V words.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlamaModel

from medim.baselines.beam_search import beam_search

METHODS = ("greedy", "beam", "nucleus")
MEAN = 1.0  # penalty of length: texts are compared by the mean log p of their tokens, as transformers does by default
# transformers renamed the argument that holds the cache
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; the values stand in params.yaml."""

    method: str  # greedy | beam | nucleus
    beams: int  # beam: hypotheses kept; see `beam_search`, finished ones compared by mean log p
    top_p: float  # nucleus: share of the probability that is drawn from (Holtzman et al. 2020, arXiv:1904.09751)
    temperature: float  # nucleus

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        if self.method not in METHODS:
            raise ValueError(f"decoding.method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.beams < 1 or not 0 < self.top_p <= 1 or self.temperature <= 0:
            raise ValueError(f"decoding needs beams >= 1, 0 < top_p <= 1 and temperature > 0, got {self}")


def nucleus_draw(logits: Tensor, top_p: float, temperature: float, uniform: Tensor) -> Tensor:
    """(B, V) logits and (B,) numbers in [0, 1) -> (B,) ids drawn from the fewest words that hold `top_p`."""
    share, order = (logits.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept = share.cumsum(-1) - share < top_p
    mass = (share * kept).cumsum(-1)
    place = (mass <= uniform[:, None] * mass[:, -1:]).sum(-1)
    return order.gather(-1, torch.minimum(place, kept.sum(-1) - 1)[:, None])[:, 0]


@dataclass(frozen=True)
class WritingState:
    """What a decoder knows of R texts: keys and values of B prompts, then those of the R texts' tokens."""

    cache: DynamicCache  # changed in place: a state serves once
    seen: Tensor  # (R, P + t) bool, which positions of the cache are there; P of the longest prompt
    places: Tensor  # (R,) position of the next token
    ahead: Tensor | None  # (R, D) hidden states where prompts end; None behind the first step


@dataclass(frozen=True)
class PromptedDecoder:
    """A Llama behind its prompts; made anew from a network's parts whenever it is used."""

    decoder: nn.Module  # transformers' LlamaModel
    head: nn.Module  # linear, D -> V
    end: int
    max_tokens: int  # of a text with its end

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.decoder.parameters()).device
        return device

    def embed(self, ids: Sequence[int]) -> Tensor:
        """(T, D) embeddings of words."""
        return self._embedded(torch.tensor(ids, dtype=torch.int64, device=self.device))

    def _embedded(self, ids: Tensor) -> Tensor:
        table: Any = self.decoder.get_submodule("embed_tokens")
        embeddings: Tensor = table(ids)
        return embeddings

    def states(self, prompts: Sequence[Tensor], texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Last hidden states (1 + T, D) of each text: where its prompt ends, and at each of its tokens."""
        rows = [torch.cat([prompt, self.embed(ids)]) for prompt, ids in zip(prompts, texts, strict=True)]
        batch, mask, lengths = _padded(rows)
        found = self.decoder(inputs_embeds=batch, attention_mask=mask, use_cache=False).last_hidden_state
        return [
            row[len(prompt) - 1 : length]
            for row, prompt, length in zip(found, prompts, lengths.tolist(), strict=True)
        ]  # fmt: skip

    def nats(self, prompts: Sequence[Tensor], texts: Sequence[Sequence[int]]) -> Tensor:
        """-log p of every token of every text after its prompt, one after another."""
        states = torch.cat([state[:-1] for state in self.states(prompts, texts)])
        targets = torch.tensor([i for ids in texts for i in ids], device=states.device)
        return cross_entropy(self.head(states).float(), targets, reduction="none")

    @torch.no_grad()
    def write(self, prompts: Sequence[Tensor], how: Decoding, seeds: Sequence[int]) -> list[list[int]]:
        """Ids of one text a prompt, without the end; a text depends on its prompt and its seed alone.

        Seeds matter to `nucleus` only. Weights that autocast has converted here do not serve a later backward pass.
        """
        kind = self.device.type
        enabled = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=False):
            state = self.start(prompts)
            if how.method == "nucleus":
                return self._drawn(state, how, seeds)
            first = torch.full((len(prompts),), self.end, device=self.device)  # not read: prompts come first
            beams = how.beams if how.method == "beam" else 1
            found = beam_search(
                self, state, first, end=self.end, beams=beams, max_length=self.max_tokens, length_penalty=MEAN
            )
            return [list(one.tokens) for one in found]

    def start(self, prompts: Sequence[Tensor]) -> WritingState:
        """The state behind the prompts."""
        batch, mask, lengths = _padded(prompts)
        cache = DynamicCache(config=self.decoder.config)
        hidden = self._read(batch, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        ends = hidden[torch.arange(len(prompts), device=hidden.device), lengths - 1]
        return WritingState(cache, mask, lengths, ends)

    def step(self, tokens: Tensor, state: WritingState) -> tuple[Tensor, WritingState]:
        """See `medim.baselines.beam_search.StepDecoder`; at the first step prompts say what comes, not `tokens`."""
        hidden, state = self._next(tokens, state)
        return self.head(hidden).float().log_softmax(-1), state

    def reorder(self, state: WritingState, rows: Tensor, items: Tensor) -> WritingState:
        """See `medim.baselines.beam_search.StepDecoder`; `rows` say all: a prompt is kept for each of its beams."""
        state.cache.batch_select_indices(rows)
        return replace(state, seen=state.seen[rows], places=state.places[rows])

    def _next(self, tokens: Tensor, state: WritingState) -> tuple[Tensor, WritingState]:
        """(R,) tokens -> hidden states (R, D) that say the next ones, and the state behind."""
        if state.ahead is not None:
            return state.ahead, replace(state, ahead=None)
        seen = torch.cat([state.seen, state.seen.new_ones(len(tokens), 1)], dim=1)
        hidden = self._read(self._embedded(tokens)[:, None], seen, state.places[:, None], state.cache)[:, 0]
        return hidden, replace(state, seen=seen, places=state.places + 1)

    def _read(self, embeddings: Tensor, seen: Tensor, places: Tensor, cache: DynamicCache) -> Tensor:
        result = self.decoder(
            inputs_embeds=embeddings, attention_mask=seen, position_ids=places, use_cache=True, **{CACHE: cache}
        )
        hidden: Tensor = result.last_hidden_state
        return hidden

    def _drawn(self, state: WritingState, how: Decoding, seeds: Sequence[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found: list[list[int]] = [[] for _ in seeds]
        ended = [False] * len(found)
        ids = torch.full((len(found),), self.end, device=self.device)  # not read, as in `write`
        for _ in range(self.max_tokens):
            hidden, state = self._next(ids, state)
            uniform = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in generators])
            ids = nucleus_draw(self.head(hidden), how.top_p, how.temperature, uniform.to(self.device))
            for row, index in enumerate(ids.tolist()):
                ended[row] = ended[row] or index == self.end
                found[row] += [] if ended[row] else [index]
            if all(ended):
                break
        return found


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (P, D) -> (B, longest, D), which positions are there (B, longest) bool, and lengths (B,)."""
    batch = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=batch.device)
    return batch, torch.arange(batch.shape[1], device=batch.device) < lengths[:, None], lengths
