"""Sentences that a report would say twice: taken back while it is written, and drawn anew.

No report of the training data says a sentence twice. A network that is trained for an hour does, in every second report
of a chest film: what is left of a sentence once it has begun is nearly sure, whether it stands there already or not. So
a sentence that was just finished and stood there before is masked again, and the sampler goes on from where it began;
whether the report ends there is drawn anew with it. That is drawing from the network's own distribution given that no
sentence comes twice, by rejection, one sentence at a time; after `text_redraws` rejections of a report what comes
stands. Not in the paper.

Letters: b samples, T report tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ENDS = (".", ":")  # last characters of a sentence, and of the prompt, which is one here


def said_again(text: Tensor, last_characters: Sequence[str]) -> Tensor:
    """(b, T) bool: the tokens of the last whole sentence where an equal one stands before it.

    A sentence ends with a token whose last character is in ENDS; one behind a digit ("1.5 cm") ends none.

    Args:
        text: (b, T) ids of reports that are written from left to right; ids beyond `last_characters` are [MASK].
        last_characters: of each report id, "" where it writes nothing.
    """
    out = torch.zeros_like(text, dtype=torch.bool)
    for row, ids in enumerate(text.tolist()):
        again = _last_repeat(ids, last_characters)
        if again is not None:
            out[row, again] = True
    return out


def _last_repeat(ids: Sequence[int], last_characters: Sequence[str]) -> slice | None:
    """Where the last whole sentence stands, if it stands there twice."""
    seen: set[tuple[int, ...]] = set()
    start, before, found = 0, "", None
    for place, id_ in enumerate(ids):
        character = last_characters[id_] if id_ < len(last_characters) else ""
        if not character:  # [MASK], or the end
            break
        if character in ENDS and not before.isdigit():
            sentence = tuple(ids[start : place + 1])
            found = slice(start, place + 1) if sentence in seen else None
            seen.add(sentence)
            start = place + 1
        before = character
    return found
