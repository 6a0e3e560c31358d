"""Reads findings out of a report by cue rules, as rule labellers of radiology reports do.

Follows NegEx (Chapman et al. 2001) and the CheXpert labeler (Irvin et al. 2019): mention, then negation and
uncertainty, each scoped to a clause, so that it also reads the broken prose of a half-trained model. Deviation: a
clause is negated or hedged as a whole instead of within a window of words, since the clauses here are short; sides are
read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from medim.data.domain import SIDES, VALUE, Finding

# What a clause says about the findings it mentions. HEDGES are looked for first, and taken out before NEGATIONS are:
# "cannot be excluded" is a hedge although it holds a "not".
NEUTRAL = (r"no (?:\w+ )?(?:change|prior|previous)\w*", r"not changed")
HEDGES = (
    r"(?:can ?not|not|never) (?:be )?(?:\w+ )?(?:excluded?|ruled? out)",
    r"possibl[ey]|possibility",
    r"may|might|could",
    r"probabl[ey]|likely",
    r"suspected|suspicion|suspicious",
    r"questionable|question of|equivocal|uncertain|unclear",
    r"suggest\w*|concern\w* for|perhaps|borderline",
)
NEGATIONS = (
    r"no|not|none|without|neither|nor|never",
    r"absent|absence of|free of|clear of|negative for|lacks?",
    r"excluded|ruled out|resolved",
    r"normal|unremarkable|intact|clear",
)
SIDE_CUES = {"left": r"left", "right": r"right", "both": r"bilateral\w*|both|left and right|right and left"}
HARD_BREAK = re.compile(
    r"[;]|\b(?:but|although|while|whereas|however|except)\b|(?=(?<!that )\bthere (?:is|are)\b)|(?=\b(?:no|without)\b)"
)
SOFT_BREAK = re.compile(r",| and | with ")
FORWARD_NEGATION = re.compile(r"\b(?:no|without|neither|free of|clear of|negative for|absence of)\b")


def split_sentences(report: str) -> list[str]:
    """Sentences of a report, each with its end mark ("Scan. No tumour." -> ["Scan.", "No tumour."])."""
    return [part for part in re.split(r"(?<=[.!?])\s+", report.strip()) if part]


def _words(cues: Iterable[str]) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(cues) + r")\b")


class Reader:
    """Reads reports.

    Args:
        cues: finding -> regexes (lower case, whole words) that mention it.
        hedges, negations: regexes beside HEDGES and NEGATIONS.
    """

    def __init__(
        self, cues: Mapping[Finding, Sequence[str]], hedges: Sequence[str] = (), negations: Sequence[str] = ()
    ) -> None:
        self._cues = [(finding, _words(patterns)) for finding, patterns in cues.items()]
        self._mention = _words(cue for patterns in cues.values() for cue in patterns)
        self._hedge = _words((*HEDGES, *hedges))
        self._negation = _words((*NEGATIONS, *negations))
        self._neutral = _words(NEUTRAL)
        self._sides = {side: _words([cue]) for side, cue in SIDE_CUES.items()}
        self._order = [label for finding in cues for label in finding.labels]

    def read(self, report: str) -> dict[str, str]:
        """Findings that a report states: label -> 'uncertain' or 'present'.

        Said twice, the stronger state counts. A sided finding with no side in its sentence counts on both sides: right
        without sides, half right with them.
        """
        read: dict[str, str] = {}
        for sentence in split_sentences(report):
            text = self._neutral.sub(" ", " ".join(sentence.lower().split()))
            if not self._mention.search(text):
                continue
            for clause in self._clauses(text):
                for label, state in self._read_clause(clause, text):
                    if VALUE[state] > VALUE[read.get(label, "absent")]:
                        read[label] = state
        return {label: read[label] for label in self._order if label in read}

    def _clauses(self, text: str) -> Iterator[str]:
        """Split at words that end the reach of a negation, and at commas and "and" between two complete claims."""
        for clause in HARD_BREAK.split(text):
            start = 0
            for comma in SOFT_BREAK.finditer(clause):
                head, tail = clause[start : comma.start()], clause[comma.end() :]
                if self._complete(head) and self._complete(tail) and not FORWARD_NEGATION.search(head):
                    yield head
                    start = comma.end()
            yield clause[start:]

    def _complete(self, text: str) -> bool:
        """Whether a text mentions a finding, and a side if the finding has sides."""
        mentioned = [finding for finding, cue in self._cues if cue.search(text)]
        return bool(mentioned) and (
            not all(finding.sided for finding in mentioned) or any(cue.search(text) for cue in self._sides.values())
        )

    def _read_clause(self, clause: str, sentence: str) -> Iterator[tuple[str, str]]:
        mentions = [(finding, match) for finding, cue in self._cues for match in cue.finditer(clause)]
        if not mentions:
            return
        unhedged = self._hedge.sub(" ", clause)
        if self._negation.search(unhedged):
            return
        state = "present" if unhedged == clause else "uncertain"
        for finding, match in mentions:
            if finding.sided:
                for side in self._side_of(clause, match) or self._side_of(sentence, match) or SIDES:
                    yield f"{side} {finding.name}", state
            else:
                yield finding.name, state

    def _side_of(self, text: str, mention: re.Match[str]) -> tuple[str, ...]:
        """Sides of a mention: those of the side cue nearest to it; () where the text has none."""
        cues = [(side, found) for side, pattern in self._sides.items() for found in pattern.finditer(text)]
        if not cues:
            return ()
        if any(side == "both" for side, _ in cues):
            return SIDES
        middle = (mention.start() + mention.end()) / 2
        side, _ = min(cues, key=lambda cue: abs((cue[1].start() + cue[1].end()) / 2 - middle))
        return (side,)
