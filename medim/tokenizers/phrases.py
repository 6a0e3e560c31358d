"""Tokens that span words: the second stage of a byte-level BPE (SuperBPE, Liu et al. 2025, arXiv:2503.13423).

Radiologists write in set phrases: most words of a report follow from the words before them and say nothing about the
picture. A BPE that stops at words spends most positions of a sequence on them. Here merging goes on across the blanks,
inside a sentence and up to a number of characters, so that "no evidence of" is one token. A merge learned here has a
lower rank than all of the first stage, so words are put together first, as they were when these merges were counted.

Deviations from the paper: pieces end after a period or a colon before a blank (its own allow any text, but not a
colon); tokens have a greatest length in characters, where the paper has one of four words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PIECE_END = r"(?<=[.:])(?= )"  # a pattern of `re` and of the tokenizers library alike
LEAST_COUNT = 2  # times that a pair must occur to be merged

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PhraseSettings:
    """Tokens across words; the values stand in params.yaml."""

    tokens: int  # ids of the vocabulary kept for them; 0: none
    length: int  # most characters (bytes) of one

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: one is negative.
        """
        if self.tokens < 0 or self.length < 0:
            raise ValueError(
                f"phrases: tokens and length must not be negative, got {self.tokens} and {self.length} "
                f"(params.yaml:tokenize_pairs.phrases)"
            )


def learn_phrases(
    texts: Iterable[str], encode: Callable[[str], list[int]], spelling: list[str], settings: PhraseSettings
) -> list[tuple[int, int]]:
    """Merges of the second stage, best first: merge i makes the id `len(spelling)` + i of its two ids.

    The most frequent pair of neighbours in the pieces of the texts is merged, `settings.tokens` times or until no pair
    occurs `LEAST_COUNT` times; of equally frequent ones the pair with the smallest ids.

    Args:
        encode: the first stage.
        spelling: of each id of the first stage.
    """
    counts = Counter(piece for text in texts for piece in re.split(PIECE_END, text))
    rows = [(encode(piece), count) for piece, count in sorted(counts.items())]
    ids = np.concatenate([np.array([*row, -1], dtype=np.int64) for row, _ in rows]) if rows else np.zeros(0, np.int64)
    weights = np.repeat([float(count) for _, count in rows], [len(row) + 1 for row, _ in rows])
    lengths = [len(s) for s in spelling]
    merges: list[tuple[int, int]] = []
    while len(merges) < settings.tokens:
        pair = _best_pair(ids, weights, np.array(lengths), settings.length)
        if pair is None:
            break
        ids, weights = _merged(ids, weights, pair, len(lengths))
        lengths.append(lengths[pair[0]] + lengths[pair[1]])
        merges.append(pair)
    return merges


def _best_pair(ids: Ints, weights: NDArray[np.float64], lengths: Ints, longest: int) -> tuple[int, int] | None:
    left, right, size = ids[:-1], ids[1:], len(lengths)
    possible = (left >= 0) & (right >= 0)
    possible &= lengths[left] + lengths[right] <= longest
    pairs, index = np.unique(left[possible] * size + right[possible], return_inverse=True)
    if not len(pairs):
        return None
    totals = np.bincount(index, weights=weights[:-1][possible])
    best = int(totals.argmax())
    if totals[best] < LEAST_COUNT:
        return None
    return int(pairs[best] // size), int(pairs[best] % size)


def _merged(
    ids: Ints, weights: NDArray[np.float64], pair: tuple[int, int], new: int
) -> tuple[Ints, NDArray[np.float64]]:
    """The pair's occurrences, from the left, become `new`."""
    hits = np.flatnonzero((ids[:-1] == pair[0]) & (ids[1:] == pair[1]))
    if pair[0] == pair[1]:  # in a run of the same id every second occurrence overlaps the one before it
        run = np.cumsum(np.concatenate([[0], np.diff(hits) != 1])) if len(hits) else hits
        start = np.searchsorted(run, run)
        hits = hits[(np.arange(len(hits)) - start) % 2 == 0]
    ids = ids.copy()
    ids[hits] = new
    keep = np.ones(len(ids), dtype=bool)
    keep[hits + 1] = False
    return ids[keep], weights[keep]
