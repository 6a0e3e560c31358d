"""The search against a plain one that looks at every step to the last."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch

from medim.baselines.beam_search import beam_search

WORDS, END = 6, 0


def log_p_behind(item, history, sharpness):
    """(V,) log p of the next word, a fixed function of text and words before."""
    seed = item + 1
    for word in history:
        seed = (seed * 1_000_003 + word + 7) % 2**31
    logits = torch.randn(WORDS, generator=torch.Generator().manual_seed(seed)) * sharpness
    logits[END] += item % 5 - 3  # so that some texts are short and some are long
    return logits.log_softmax(-1)


@dataclass(frozen=True)
class History:
    items: torch.Tensor  # (B,)
    words: torch.Tensor  # (R, t)


class Table:
    """A decoder that knows its whole past, and keeps how many rows it was asked for."""

    def __init__(self, sharpness):
        self.sharpness, self.rows = sharpness, []

    def start(self, batch):
        return History(torch.arange(batch), torch.zeros(batch, 0, dtype=torch.int64))

    def step(self, tokens, state):
        self.rows.append(len(tokens))
        words = torch.cat([state.words, tokens[:, None]], 1)
        items = state.items.repeat_interleave(len(tokens) // len(state.items))
        rows = [log_p_behind(int(i), w.tolist(), self.sharpness) for i, w in zip(items, words, strict=True)]
        return torch.stack(rows), replace(state, words=words)

    def reorder(self, state, rows, items):
        assert items.tolist() == sorted(set(items.tolist()))
        return History(state.items[items], state.words[rows])


def search(table, batch, beams, max_length, first=5, penalty=0.0):
    begin = torch.full((batch,), first)
    return beam_search(
        table, table.start(batch), begin, end=END, beams=beams, max_length=max_length, length_penalty=penalty
    )


def plain_search(item, sharpness, beams, max_length, first=5, penalty=0.0):
    """Lists; no early stop."""
    live, finished = [(0.0, ())], []
    for length in range(1, max_length + 1):
        found = [
            (score + float(log_p_behind(item, (first, *words), sharpness)[word]), (*words, word))
            for score, words in live
            for word in range(WORDS)
        ]
        best = sorted(found, key=lambda one: -one[0])[:beams]
        ends = [one for one in best if one[1][-1] == END or length == max_length]
        finished += [(score / length**penalty, score, words) for score, words in ends]
        live = [one for one in best if one not in ends]
        if not live:
            break
    _, score, words = max(finished, key=lambda one: one[0])
    return score, words[:-1] if words[-1] == END else words


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("beams", [1, 3, 6])
def test_answers_are_those_of_a_plain_search_without_early_stop(beams, sharpness, penalty):
    found = search(Table(sharpness), 12, beams, 7, penalty=penalty)
    expected = [plain_search(item, sharpness, beams, 7, penalty=penalty) for item in range(12)]
    assert [one.tokens for one in found] == [words for _, words in expected]
    assert [one.log_p for one in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert len({len(one.tokens) for one in found}) > 1


def test_one_beam_is_greedy():
    for item, one in enumerate(search(Table(1.0), 5, 1, 9)):
        words = []
        while len(words) < 9:
            word = int(log_p_behind(item, (5, *words), 1.0).argmax())
            if word == END:
                break
            words.append(word)
        assert one.tokens == tuple(words)


def test_all_words_as_beams_find_the_best_of_all_texts_of_two_words():
    for item, one in enumerate(search(Table(1.0), 4, WORDS, 2)):
        first = log_p_behind(item, (5,), 1.0)
        texts = {(): float(first[END])}
        for a, b in itertools.product(range(1, WORDS), range(WORDS)):
            score = float(first[a] + log_p_behind(item, (5, a), 1.0)[b])
            texts[(a,) if b == END else (a, b)] = score
        assert one.tokens == max(texts, key=texts.__getitem__)


def test_texts_do_not_depend_on_their_batch():
    together = search(Table(1.0), 6, 3, 8)
    table = Table(1.0)
    for item in range(6):
        state = History(torch.tensor([item]), torch.zeros(1, 0, dtype=torch.int64))
        alone = beam_search(table, state, torch.tensor([5]), end=END, beams=3, max_length=8)
        assert alone[0].tokens == together[item].tokens


class Scripted(Table):
    """Text i is sure of i words, then of its end: p 0.9 at each step."""

    def step(self, tokens, state):
        log_p, state = super().step(tokens, state)
        items = state.items.repeat_interleave(len(tokens) // len(state.items))
        sure = torch.where(state.words.shape[1] > items, END, 1)
        out = torch.full_like(log_p, math.log(0.1 / (WORDS - 1)))
        return out.scatter(1, sure[:, None], math.log(0.9)), state


def test_a_text_leaves_the_batch_when_nothing_open_can_win():
    table = Scripted(1.0)
    found = search(table, 3, 2, 50)
    assert [one.tokens for one in found] == [(), (1,), (1, 1)]
    assert [one.log_p for one in found] == pytest.approx([math.log(0.9) * n for n in (1, 2, 3)], abs=1e-6)
    assert table.rows == [3, 4, 2]  # one row a text, then two of each that is still open


def test_the_first_of_equals_is_kept():
    class Even(Table):
        def step(self, tokens, state):
            log_p, state = super().step(tokens, state)
            sure = state.words.shape[1] > 1  # then the end costs nothing
            out = torch.full_like(log_p, 0.0 if sure else math.log(0.25))
            out[:, END] = 0.0 if sure else math.log(0.5)
            out[:, 1] = 0.0 if sure else math.log(0.5)
            return out, state

    table = Even(1.0)
    assert search(table, 1, 2, 9)[0].tokens == () and len(table.rows) == 1


def test_the_mean_of_a_word_finds_longer_texts():
    def words(penalty):
        return sum(len(one.tokens) for one in search(Table(1.0), 12, 3, 7, penalty=penalty))

    assert words(1.0) > words(0.0)


def test_impossible_values_are_named():
    with pytest.raises(ValueError, match=r"beams must lie in \[1, 6\] \(words\), got 7"):
        search(Table(1.0), 1, 7, 3)
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        search(Table(1.0), 1, 2, 0)
    with pytest.raises(ValueError, match=r"length_penalty must be at least 0, got -1"):
        search(Table(1.0), 1, 2, 3, penalty=-1.0)

    class Mute(Table):
        def step(self, tokens, state):
            log_p, state = super().step(tokens, state)
            return torch.full_like(log_p, -math.inf), state

    with pytest.raises(ValueError, match="2 of 2 texts have no word of positive probability"):
        search(Mute(1.0), 2, 2, 3)
