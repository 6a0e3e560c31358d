"""Where the sentences of a report stand among its tokens."""

from __future__ import annotations

from collections.abc import Sequence

ENDS = (".", ":")  # last characters of a sentence, and of the prompt, which is one here


def next_sentence(report: Sequence[int], start: int, last_characters: Sequence[str]) -> slice | None:
    """Where the sentence that begins at token `start` stands, if it is whole.

    A sentence ends with a token whose last character is in ENDS; one behind a digit ("1.5 cm") ends none.

    Args:
        report: token ids; ids beyond `last_characters` are [MASK].
        start: token.
        last_characters: of each report id, "" where it writes nothing (see TextTokenizer.last_characters).
    """
    before = ""
    for place in range(start, len(report)):
        character = last_characters[report[place]] if report[place] < len(last_characters) else ""
        if not character:  # [MASK], or the end
            return None
        if character in ENDS and not before.isdigit():
            return slice(start, place + 1)
        before = character
    return None


def whole_sentences(report: Sequence[int], last_characters: Sequence[str]) -> list[slice]:
    """Where the whole sentences of a report's beginning stand, one after the other; see `next_sentence`."""
    found: list[slice] = []
    while (span := next_sentence(report, found[-1].stop if found else 0, last_characters)) is not None:
        found.append(span)
    return found
