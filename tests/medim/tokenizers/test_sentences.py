"""Sentences among a report's tokens, by hand."""

import pytest

from medim.diffusion.redraws import said_before
from medim.tokenizers.sentences import whole_sentences

# ids: 0 EOS, 1-3 words, 4 full stop, 5 colon, 6 a digit; 12 is [MASK]
CHARACTERS = ("", "a", "b", "c", ".", ":", "1", "x", "x", "x", "x", "x")


@pytest.mark.parametrize(
    ("ids", "sentences"),
    [
        ([1, 4, 2, 4, 1, 4, 12, 12], [(0, 2, False), (2, 4, False), (4, 6, True)]),  # a. b. a.
        ([1, 4, 2, 4, 2, 1, 4, 12], [(0, 2, False), (2, 4, False), (4, 7, False)]),  # a. b. b a.
        ([2, 5, 1, 4, 2, 4, 1, 4], [(0, 2, False), (2, 4, False), (4, 6, False), (6, 8, True)]),  # ends with a colon
        ([1, 4, 1, 12, 4, 12, 12, 12], [(0, 2, False)]),  # not finished
        ([1, 6, 4, 6, 4, 1, 6, 4], []),  # a 1.1. a 1.: no sentence ends behind a digit
        ([1, 4, 0, 0, 1, 4, 0, 0], [(0, 2, False)]),  # behind the end nothing is said
    ],
)
def test_sentences_are_found_one_after_the_other_and_those_that_stood_before(ids, sentences):
    found = whole_sentences(ids, CHARACTERS)
    assert [(span.start, span.stop, said_before(ids, span, CHARACTERS)) for span in found] == sentences
