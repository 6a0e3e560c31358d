"""Tokens across words: the merges of the definition, and a first stage that they leave as it was."""

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medim.tokenizers.phrases import LEAST_COUNT, PIECE_END, PhraseSettings, learn_phrases
from medim.tokenizers.text import TextTokenizer

REPORTS = [
    f"chest x-ray: There is a {size} {side} pleural effusion. No sign of {other}."
    for size in ("small", "moderate", "large")
    for side in ("left", "right")
    for other in ("pneumothorax", "consolidation")
] * 3
SETTINGS = PhraseSettings(tokens=40, length=14)
WORDS, PHRASES = TextTokenizer.train(REPORTS, 400), TextTokenizer.train(REPORTS, 440, SETTINGS)


def merges_by_definition(texts, lengths, settings):
    """Byte-pair encoding as the paper tells it, one list at a time."""
    rows = [[ord(c) - 97 for c in piece] for text in texts for piece in re.split(PIECE_END, text)]
    lengths, merges = list(lengths), []
    while len(merges) < settings.tokens:
        counts = Counter(pair for row in rows for pair in itertools.pairwise(row))
        counts = {p: n for p, n in counts.items() if lengths[p[0]] + lengths[p[1]] <= settings.length}
        if not counts or max(counts.values()) < LEAST_COUNT:
            break
        best = min(p for p, n in counts.items() if n == max(counts.values()))
        for row in rows:
            i = 0
            while i < len(row) - 1:
                if (row[i], row[i + 1]) == best:
                    row[i : i + 2] = [len(lengths)]
                i += 1
        lengths.append(lengths[best[0]] + lengths[best[1]])
        merges.append(best)
    return merges


@given(st.lists(st.text("abc", max_size=12), max_size=6), st.integers(0, 8), st.integers(0, 6))
def test_merges_are_those_of_the_definition(texts, tokens, length):
    settings, spelling = PhraseSettings(tokens, length), ["a", "b", "c"]
    found = learn_phrases(texts, lambda piece: [ord(c) - 97 for c in piece], spelling, settings)
    assert found == merges_by_definition(texts, [1, 1, 1], settings)


def test_a_merge_with_itself_takes_every_second_one():
    settings = PhraseSettings(tokens=2, length=9)
    assert learn_phrases(["aaaaa", "aaaaa"], lambda piece: [0] * len(piece), ["a"], settings) == [(0, 0), (1, 0)]


def test_tokens_span_words_but_neither_sentences_nor_the_greatest_length():
    learned = [PHRASES.backend.decode([i]) for i in range(WORDS.backend.size, PHRASES.backend.size)]
    spanning = [token for token in learned if " " in token.strip()]
    assert spanning and all(len(token) <= 14 for token in learned)
    assert not [token for token in learned if re.search(r"[.:] ", token)]
    assert PHRASES.num_tokens(REPORTS[0]) < 0.7 * WORDS.num_tokens(REPORTS[0])


def test_words_are_put_together_as_before():
    for i in range(WORDS.backend.size):
        assert PHRASES.backend.decode([i]) == WORDS.backend.decode([i])


@given(st.text(max_size=60))
def test_every_text_survives(text):
    assert PHRASES.decode(PHRASES.encode(text, PHRASES.num_tokens(text) + 1)) == text


@given(st.sampled_from(REPORTS), st.sampled_from(REPORTS))
def test_a_prompt_has_the_same_tokens_with_and_without_its_report(a, b):
    prompt = a.split(":")[0] + ":"
    assert PHRASES.backend.encode(prompt + " " + b)[: PHRASES.num_tokens(prompt)] == PHRASES.backend.encode(prompt)


def test_no_phrases_is_a_plain_bpe():
    assert TextTokenizer.train(REPORTS, 400, PhraseSettings(0, 0)).backend.content() == WORDS.backend.content()


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="tokens and length must not be negative, got -1 and 3"):
        PhraseSettings(-1, 3)
    with pytest.raises(ValueError, match=r"at least 259 .* got 300 - 42"):
        TextTokenizer.train(REPORTS, 300, PhraseSettings(42, 9))
