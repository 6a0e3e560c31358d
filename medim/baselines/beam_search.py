"""Beam search over a decoder that keeps a state, for a batch of texts at once.

As in cuhksz-nlp/R2Gen, modules/caption_model.py: log p is summed, there without a penalty of length; the K best
continuations are kept at each step; those that end are finished, and the next K continue the others; at the last step
all are finished; of all finished ones the best is the answer, of equals the first.

What is faster, with the same answers: the decoder sees one word a step; and since log p of a word is never positive, a
text is done as soon as its best finished continuation is at least as good as its best open one could become, which is
log p so far over the penalty of the longest text. Its rows then leave the batch.

Letters: B texts, K beams, V words; B' and R' texts and rows that are still open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


class StepDecoder(Protocol[State]):
    """What is searched: rows of one text stand together, in the texts' order."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One word for each row, (R,) int64 -> log p (R, V) of the next, none positive, and the state behind it."""

    def reorder(self, state: State, rows: Tensor, items: Tensor) -> State:
        """The state with `rows` (R',) of this one's, of its texts `items` (B',), which ascend and stand once each."""


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: its words without the end, and log p of them and of the end (none where time was up)."""

    tokens: tuple[int, ...]
    log_p: float


@dataclass
class _Open:
    """The continuations of the texts that are still open, B' of them with k rows each."""

    items: Tensor  # (B',) which texts
    tokens: Tensor  # (B', k, t)
    scores: Tensor  # (B', k), -inf where a row is finished


@torch.no_grad()
def beam_search(
    decoder: StepDecoder[State], state: State, first: Tensor, *, end: int, beams: int, max_length: int,
    length_penalty: float = 0.0,
) -> list[Hypothesis]:  # fmt: skip
    """The best text of each of B states; with one beam, the greedy one.

    Args:
        decoder: see `StepDecoder`.
        state: with one row a text.
        first: (B,) int64, the word that each text begins with (BOS); it is not among the answer's.
        end: the end word (EOS).
        beams: K, at most V.
        max_length: words of an answer at most, the end among them.
        length_penalty: finished texts are compared by log p over their number of words, the end among them, to this
            power; 0: by log p, 1: by the mean of a word.

    Raises:
        ValueError: beams, max_length or length_penalty is impossible, or no word has a probability.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    if length_penalty < 0:
        raise ValueError(f"length_penalty must be at least 0, got {length_penalty}")
    best: list[Hypothesis | None] = [None] * len(first)
    best_scores = torch.full((len(first),), -math.inf, device=first.device)
    found = _Open(torch.arange(len(first), device=first.device), first[:, None, None][..., :0], first[:, None] * 0.0)
    words = first
    for length in range(1, max_length + 1):
        log_p, state = decoder.step(words, state)
        if not 1 <= beams <= log_p.shape[1]:
            raise ValueError(f"beams must lie in [1, {log_p.shape[1]}] (words), got {beams}")
        rows, found = _continued(found, log_p, beams)
        ended = found.tokens[..., -1] == end
        if length == max_length:
            ended = torch.ones_like(ended)
        _finish(found, ended, best, best_scores, end, length**length_penalty)
        found.scores = found.scores.masked_fill(ended, -math.inf)
        going = (found.scores.amax(1) / max_length**length_penalty > best_scores[found.items]).nonzero().flatten()
        if not len(going):
            break
        state = decoder.reorder(state, rows[going].flatten(), going)
        found = _Open(found.items[going], found.tokens[going], found.scores[going])
        words = found.tokens[..., -1].flatten()
    answers = [one for one in best if one is not None]
    if len(answers) != len(best):
        raise ValueError(f"{len(best) - len(answers)} of {len(best)} texts have no word of positive probability")
    return answers


def _continued(found: _Open, log_p: Tensor, beams: int) -> tuple[Tensor, _Open]:
    """The `beams` best continuations of each text, best first, and (B', K) the rows that they continue."""
    texts, rows = found.scores.shape
    total = found.scores[..., None] + log_p.float().view(texts, rows, -1)
    scores, chosen = total.flatten(1).topk(beams)
    parents, words = chosen // total.shape[2], chosen % total.shape[2]
    past = found.tokens.gather(1, parents[..., None].expand(-1, -1, found.tokens.shape[2]))
    first_rows = torch.arange(texts, device=parents.device)[:, None] * rows
    return first_rows + parents, _Open(found.items, torch.cat([past, words[..., None]], 2), scores)


def _finish(
    found: _Open, ended: Tensor, best: list[Hypothesis | None], best_scores: Tensor, end: int, penalty: float
) -> None:
    """Keep the best finished continuation of each text, worth its log p over `penalty`, where it beats what is kept."""
    beam = ended.int().argmax(1, keepdim=True)  # rows are sorted: the first finished one is the best
    log_p = found.scores.gather(1, beam).squeeze(1)
    scores = log_p / penalty
    better = ended.any(1) & (scores > best_scores[found.items])
    for row in better.nonzero().flatten().tolist():
        item, tokens = int(found.items[row]), found.tokens[row, int(beam[row])].tolist()
        best[item] = Hypothesis(tuple(tokens[:-1] if tokens[-1] == end else tokens), float(log_p[row]))
        best_scores[item] = scores[row]
