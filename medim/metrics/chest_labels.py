"""Reads CheXpert's fourteen findings out of chest X-ray reports by rules: positive, negative, uncertain or unmentioned.

Mention, denial and hedge after NegEx (Chapman et al. 2001, "A simple algorithm for identifying negated findings and
diseases in discharge summaries") and the CheXpert labeler (Irvin et al. 2019, section 3): a phrase names a finding, a
cue before or behind it denies or hedges it as far as the next word that ends the cue's reach. Phrases and cues are our
own (chest_phrases.py), so scores from these labels are called `ce_rules_*` and never CheXpert or CheXbert.

Deviations: a cue reaches to the end of its clause instead of five words, since reports deny long lists; "heart" and
"mediastinum" are read with what is said of them ("the heart is mildly enlarged"); signs that suggest a finding without
naming it (vascular congestion: edema) are uncertain; a report that says nothing has no label, "No Finding" neither.
Letters: N reports, L = 14 labels, S different sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medim.data.report_text import is_empty
from medim.metrics.chest_phrases import (
    DENIAL_BEFORE,
    DENIAL_BEHIND,
    DEVICES,
    DOUBT_BEFORE,
    DOUBT_BEHIND,
    HEDGE_BEFORE,
    HINTS,
    LABELS,
    NAMES,
    NO_FINDING,
    OTHERS,
    PART_BETWEEN,
    PART_BORDERLINE,
    PART_LARGE,
    PART_NORMAL,
    PARTS,
    QUANTITIES,
    SKIPPED,
    STOPS,
    STOPS_OF_DENIAL,
    VERBS,
)

POSITIVE, NEGATIVE, UNCERTAIN, UNMENTIONED = 1, 0, -1, -2  # the CSV files of CheXpert say 1, 0, -1 and nothing
STRENGTH = np.array([UNMENTIONED, NEGATIVE, UNCERTAIN, POSITIVE], dtype=np.int8)  # said twice, the stronger counts
NOTHING, DENIED, DOUBTED, SAID = range(4)  # indices of STRENGTH; DENIED and DOUBTED are also what a cue does

Labels = NDArray[np.int8]  # (N, L)


def _words(patterns: Iterable[str]) -> str:
    return r"\b(?:" + "|".join(patterns) + r")\b"


COLUMN = {label: number for number, label in enumerate(LABELS)}
SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\bvs\.)(?<!\bdr\.)\s+|(?<=[a-z])\.(?=[A-Z])|\n\s*\n|\n\s*(?=\d+[.)]\s|[-*•])", re.IGNORECASE
)
LONG_GAP = 100  # characters between a part and what is said of it
_OTHERS = re.compile(_words(OTHERS))
_NAMES = [(COLUMN[label], SAID, re.compile(_words(patterns))) for label, patterns in NAMES.items()]
_HINTS = [(COLUMN[label], DOUBTED, re.compile(_words(patterns))) for label, patterns in HINTS.items()]
_PARTS = [(COLUMN[label], re.compile(_words([pattern]))) for label, pattern in PARTS.items()]
_ANY_PART = re.compile(_words(PARTS.values()))
_ANY = re.compile(_words(pattern for group in (*NAMES.values(), *HINTS.values(), PARTS.values()) for pattern in group))
_SAID_OF_PARTS = re.compile(
    rf"\b(?:(?P<border>{PART_BORDERLINE})|(?P<normal>{PART_NORMAL})|(?P<large>{PART_LARGE}))(?!\w)"
)
_OF_PART = {"border": DOUBTED, "normal": DENIED, "large": SAID}
_BETWEEN = re.compile(PART_BETWEEN)
_VERB = re.compile(_words([VERBS]))
_OR = re.compile(r"\b(?:or|nor)\b")
_ALTERNATIVES = re.compile(r"[\s,(]*(?:\w+[\s,]+){0,2}(?:or|and/or|versus|vs\.?|/)(?:\s+\w+){0,3}\s*|/")
_STOP = rf"[;:]|{_words(STOPS)}"
_STOPPED = re.compile(_STOP)
_CUES = re.compile(
    "|".join(
        f"(?P<{kind}>{pattern})"
        for kind, pattern in {
            "skipped": _words(SKIPPED),
            "doubt_behind": _words(DOUBT_BEHIND),
            "denial_behind": _words(DENIAL_BEHIND),
            "doubt": _words(DOUBT_BEFORE),
            "hedge": _words(HEDGE_BEFORE),
            "denial": _words(DENIAL_BEFORE),
            "stop": _STOP,
            "stop_denial": _words(STOPS_OF_DENIAL),
            "list_end": rf"(?:, (?:and |with )?|\b(?:and|with|plus) )(?=(?:{QUANTITIES})\b)",
        }.items()
    )
)


@dataclass
class _Mention:
    """A finding named at [start, end) of a sentence; `strength` if nothing denies or hedges it."""

    start: int
    end: int
    column: int
    strength: int
    before: int = NOTHING  # what the cues before it do: NOTHING, DENIED or DOUBTED
    behind: int = NOTHING
    alternative: bool = False  # "atelectasis or pneumonia"

    def settled(self) -> int:
        """Its strength after all cues."""
        if self.strength == DENIED:
            return DENIED
        if self.behind == DOUBTED:
            return DOUBTED
        if DENIED in (self.before, self.behind):
            return DENIED
        return DOUBTED if self.alternative or self.before == DOUBTED else self.strength


def label_reports(reports: Sequence[str]) -> Labels:
    """Labels (N, 14) int8 of reports, columns as in LABELS: POSITIVE, NEGATIVE, UNCERTAIN or UNMENTIONED.

    "No Finding" is POSITIVE where no other label but "Support Devices" is positive or uncertain, else UNMENTIONED
    (Irvin et al. 2019). Each different sentence is read once.
    """
    numbers: dict[str, int] = {}
    owners, sentences = [], []
    for row, report in enumerate(reports):
        for sentence in split_clauses(report):
            owners.append(row)
            sentences.append(numbers.setdefault(sentence, len(numbers)))
    found = np.zeros((len(reports), len(LABELS)), dtype=np.int64)
    if numbers:
        read = np.array([_read_sentence(sentence) for sentence in numbers], dtype=np.int64)
        np.maximum.at(found, np.array(owners), read[sentences])
    others = [column for label, column in COLUMN.items() if label not in (NO_FINDING, DEVICES)]
    silent = np.array([is_empty(report) for report in reports], dtype=bool)
    healthy = (found[:, others] < DOUBTED).all(axis=1) & ~silent
    found[:, COLUMN[NO_FINDING]] = np.where(healthy, SAID, NOTHING)
    return STRENGTH[found]


def label_report(report: str) -> dict[str, int | None]:
    """Label -> 1, 0, -1 or None (not mentioned) of one report."""
    row = label_reports([report])[0].tolist()
    return {label: None if state == UNMENTIONED else state for label, state in zip(LABELS, row, strict=True)}


def split_clauses(report: str) -> list[str]:
    """Sentences of a report in lower case, each on one line, without empty ones."""
    parts = (" ".join(part.lower().split()) for part in SENTENCE_END.split(report))
    return [part for part in parts if part]


def _read_sentence(sentence: str) -> list[int]:
    """Strength of each label in one sentence."""
    read = [NOTHING] * len(LABELS)
    if not _ANY.search(sentence):
        return read
    text = _OTHERS.sub(lambda match: " " * len(match[0]), sentence)
    mentions = sorted(_mentions(text), key=lambda mention: (mention.start, mention.end))
    cues = list(_CUES.finditer(text))
    _look_ahead(text, cues, mentions)
    _look_back(text, cues, mentions)
    for first, second in pairwise(mentions):
        if first.column != second.column and _ALTERNATIVES.fullmatch(text, first.end, max(first.end, second.start)):
            first.alternative = second.alternative = True
    for mention in mentions:
        read[mention.column] = max(read[mention.column], mention.settled())
    return read


def _mentions(text: str) -> Iterator[_Mention]:
    for column, strength, pattern in (*_NAMES, *_HINTS):
        for match in pattern.finditer(text):
            yield _Mention(match.start(), match.end(), column, strength)
    for column, pattern in _PARTS:
        for part in pattern.finditer(text):
            said = _said_of(text, part)
            if said is not None:
                yield _Mention(said.start(), said.end(), column, _OF_PART[str(said.lastgroup)])


def _said_of(text: str, part: re.Match[str]) -> re.Match[str] | None:
    """What is said of a part: the word right before it ("enlarged heart"), else the next one behind it."""
    behind = None
    for said in _SAID_OF_PARTS.finditer(text):
        if said.end() <= part.start() and _BETWEEN.fullmatch(text, said.end(), part.start()):
            return said
        if behind is None and said.start() >= part.end():
            behind = said
    if behind is None or behind.start() - part.end() > LONG_GAP:
        return None
    verb = _VERB.search(text, part.end(), behind.start())
    other = verb is not None and _ANY_PART.search(text, verb.end(), behind.start())
    return None if other else behind


def _look_ahead(text: str, cues: Sequence[re.Match[str]], mentions: Sequence[_Mention]) -> None:
    """Set `before` of each mention: what the cues to its left do to it."""
    state, waiting = NOTHING, iter([*cues, None])
    cue = next(waiting)
    for mention in mentions:
        while cue is not None and cue.start() < mention.start:
            state = _after(text, cue, state)
            cue = next(waiting)
        mention.before = state


def _after(text: str, cue: re.Match[str], state: int) -> int:
    kind = cue.lastgroup
    if kind == "denial":
        return DENIED
    if kind == "doubt" or (kind == "hedge" and state != DENIED):
        return DOUBTED
    if kind == "stop" or (kind == "stop_denial" and state == DENIED):
        return NOTHING
    if kind == "list_end" and not _goes_on(text, cue.end()):
        return NOTHING
    return state


def _goes_on(text: str, start: int) -> bool:
    """Whether a list goes on behind `start`: an "or" comes before the reach ends."""
    stop = _STOPPED.search(text, start)
    return _OR.search(text, start, stop.start() if stop else len(text)) is not None


def _look_back(text: str, cues: Sequence[re.Match[str]], mentions: Sequence[_Mention]) -> None:
    """Set `behind` of each mention: what the cues to its right do to it ("pneumothorax is not seen")."""
    state, place, waiting = NOTHING, len(text), iter([*reversed(cues), None])
    cue = next(waiting)
    for mention in reversed(mentions):
        while cue is not None and cue.start() >= mention.end:
            kind = cue.lastgroup
            if kind in ("denial_behind", "doubt_behind"):
                state, place = DENIED if kind == "denial_behind" else DOUBTED, cue.start()
            elif kind in ("stop", "denial") or (kind == "list_end" and not _OR.search(text, cue.end(), place)):
                state = NOTHING
            cue = next(waiting)
        mention.behind = state
