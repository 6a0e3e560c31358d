"""The engine of the phantoms' prose: it writes reports from findings, reads them back by rules, and judges sentences.

A domain supplies data only (`Language`): templates per finding and state, words of the slots, normal statements.
Reading back is `medim.data.report_reader`, which goes by cues and never looks at the templates.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medim.data.domain import SIDES, VALUE, Finding, Findings, labels_of, without_side
from medim.data.report_reader import Reader, split_sentences
from medim.pairs import PROMPT_END

__all__ = ["Language", "Phrases", "ReportGrammar", "split_sentences"]

MIN_PHRASINGS = 4
SLOT = re.compile(r"\{(\w+)\}")

SlotWords = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Phrases:
    """How one finding is spoken of.

    Templates are whole sentences that begin with a lower-case letter (unless the word is always a capital one) and end
    with a period. `{side}` stands for left or right; other slots are looked up in `slots`, then in the language's.

    Attributes:
        finding: the finding.
        cues: regexes that mention it, in lower case ("effusions?"); whole words.
        present, uncertain, absent: at least MIN_PHRASINGS templates each; sided findings name `{side}` in the first two
            and never in the third.
        both, both_uncertain: for sided findings, templates without `{side}` that speak of both sides at once.
        slots: slot -> words to choose from freely, or slot -> {value of the scene: its words}.
    """

    finding: Finding
    cues: Sequence[str]
    present: Sequence[str]
    uncertain: Sequence[str]
    absent: Sequence[str]
    both: Sequence[str] = ()
    both_uncertain: Sequence[str] = ()
    slots: Mapping[str, SlotWords] = field(default_factory=dict)

    def templates(self, state: str, bilateral: bool = False) -> Sequence[str]:
        """Templates of a state ('absent', 'uncertain', 'present'), of one side or of both at once."""
        if bilateral:
            return {"present": self.both, "uncertain": self.both_uncertain}.get(state, ())
        return {"present": self.present, "uncertain": self.uncertain, "absent": self.absent}[state]


@dataclass(frozen=True)
class Language:
    """All the words of a domain.

    Attributes:
        phrases: one entry a finding.
        statements: (template, names of findings that must be absent for it to be true): "the lungs are clear.", and
            negations of several findings at once; must not read as any finding.
        openings: whole sentences that may begin a report ("frontal view of the chest.").
        comparisons: starts of a first sentence where there is a prior study ("compared with the prior study, ").
        slots: words shared by all findings (see `Phrases.slots`).
        hedges, negations: cues beside the engine's own.
        words: (fewest, most) words that a report aims at; findings are always stated, so many of them may exceed it.
    """

    phrases: Sequence[Phrases]
    statements: Sequence[tuple[str, Sequence[str]]]
    openings: Sequence[str] = ()
    comparisons: Sequence[str] = ()
    slots: Mapping[str, SlotWords] = field(default_factory=dict)
    hedges: Sequence[str] = ()
    negations: Sequence[str] = ()
    words: tuple[int, int] = (12, 40)
    chance_opening: float = 0.25
    chance_comparison: float = 0.6
    chance_bilateral: float = 0.7


def capitalise(sentence: str) -> str:
    """First letter in upper case, the rest untouched."""
    return sentence[:1].upper() + sentence[1:]


def with_articles(sentence: str) -> str:
    """Templates write "a" everywhere: make it "an" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def without_articles(sentence: str) -> str:
    """The inverse of `with_articles`."""
    return re.sub(r"\b([Aa])n (?=[aeiou])", r"\1 ", sentence)


class ReportGrammar:
    """Writes, reads and judges the reports of one domain (`medim.data.domain.Grammar`).

    Args:
        language: the domain's words.
        readers: more languages whose cues this grammar reads too (the same findings worded for another dataset).

    Raises:
        ValueError: a template breaks the rules of `Phrases`, has an unknown slot, or holds the prompt's end mark.
    """

    def __init__(self, language: Language, readers: Sequence[Language] = ()) -> None:
        self.language = language
        self.phrases = {phrases.finding.name: phrases for phrases in language.phrases}
        self.findings = tuple(phrases.finding for phrases in language.phrases)
        self.labels = labels_of(self.findings)
        _check(language)
        heard = (language, *readers)
        self._reader = Reader(
            {
                f: [c for spoken in heard for p in spoken.phrases if p.finding == f for c in p.cues]
                for f in self.findings
            },
            [cue for spoken in heard for cue in spoken.hedges],
            [cue for spoken in heard for cue in spoken.negations],
        )
        self._valid = _sentence_pattern(language)

    # ------------------------------------------------------------------ writing

    def write(
        self,
        findings: Findings,
        rng: random.Random,
        facts: Mapping[str, Mapping[str, str]] | None = None,
        prior: bool = False,
    ) -> str:
        """A report of one line that states all findings, and some of the absent ones.

        Args:
            findings: label -> state; absent ones may be left out.
            rng: source of the wording.
            facts: label -> slot -> value, where the scene fixes a slot that has values ("size": "small").
            prior: whether there is an earlier study to compare with.

        Raises:
            ValueError: unknown label or state, or a fact missing for a slot that has values.
        """
        stated = {label: state for label, state in findings.items() if state != "absent"}
        for label, state in findings.items():
            if label not in self.labels or state not in VALUE:
                raise ValueError(f"no finding {label!r} in state {state!r}; labels are {', '.join(self.labels)}")
        sentences = self._state(stated, rng, facts or {}, short=False)
        most = self.language.words[1]
        if _count(sentences) > most:
            sentences = self._state(stated, rng, facts or {}, short=True)
        sentences += self._leave_out(stated, rng, rng.randint(*self.language.words) - _count(sentences))
        rng.shuffle(sentences)
        if self.language.comparisons and prior and rng.random() < self.language.chance_comparison:
            sentences[0] = rng.choice(self.language.comparisons) + sentences[0]
        elif self.language.openings and rng.random() < self.language.chance_opening and _count(sentences) + 6 <= most:
            sentences.insert(0, self._fill(rng.choice(self.language.openings), {}, {}, rng))
        return " ".join(capitalise(with_articles(sentence)) for sentence in sentences)

    def _state(
        self, stated: Findings, rng: random.Random, facts: Mapping[str, Mapping[str, str]], short: bool
    ) -> list[str]:
        """One sentence a finding, or one for both of its sides."""
        sentences: list[str] = []
        done: set[str] = set()
        for label, state in stated.items():
            if label in done:
                continue
            phrases = self.phrases[without_side(label)]
            pair = phrases.finding.labels
            known = dict(facts.get(label, {}))
            bilateral = len(pair) == 2 and all(stated.get(other) == state for other in pair)
            bilateral = bilateral and (short or rng.random() < self.language.chance_bilateral)
            templates = phrases.templates(state, bilateral) if bilateral else ()
            if bilateral:
                known = _agreed([facts.get(other, {}) for other in pair])
                templates = [t for t in templates if self._slots_known(t, phrases, known)]
            if templates:
                done.update(pair)
            else:
                known = dict(facts.get(label, {}))
                templates = phrases.templates(state)
            known["side"] = label.partition(" ")[0]
            template = min(templates, key=lambda t: len(t.split())) if short else rng.choice(templates)
            sentences.append(self._fill(template, known, phrases.slots, rng))
        return sentences

    def _slots_known(self, template: str, phrases: Phrases, known: Mapping[str, str]) -> bool:
        return all(
            slot in known or not isinstance(self._slot(slot, phrases.slots), Mapping) for slot in SLOT.findall(template)
        )

    def _leave_out(self, stated: Findings, rng: random.Random, room: int) -> list[str]:
        """Sentences about absent findings, until the report has its length; at least one where nothing is stated."""
        found = {without_side(label) for label in stated}
        none: Mapping[str, SlotWords] = {}
        choices = [(text, names, none) for text, names in self.language.statements if not found.intersection(names)]
        for name, phrases in self.phrases.items():
            if name not in found:
                choices.append((rng.choice(phrases.absent), (name,), phrases.slots))
        rng.shuffle(choices)
        sentences: list[str] = []
        said: set[str] = set()
        for text, names, slots in choices:
            need = len(text.split())
            if said.intersection(names) or (need > room and (stated or sentences)):
                continue
            sentences.append(self._fill(text, {}, slots, rng))
            said.update(names)
            room -= need
        return sentences

    def _slot(self, slot: str, own: Mapping[str, SlotWords]) -> SlotWords:
        return own[slot] if slot in own else self.language.slots[slot]

    def _fill(self, template: str, known: Mapping[str, str], own: Mapping[str, SlotWords], rng: random.Random) -> str:
        def word(match: re.Match[str]) -> str:
            slot = match[1]
            if slot == "side":
                return known["side"]
            words = self._slot(slot, own)
            if not isinstance(words, Mapping):
                return rng.choice(words)
            if known.get(slot) not in words:
                raise ValueError(
                    f"slot {slot!r} of {template!r} needs one of {sorted(words)}, the scene says {known.get(slot)!r}"
                )
            return rng.choice(words[known[slot]])

        return SLOT.sub(word, template) if "{" in template else template

    # ------------------------------------------------------------------ reading

    def read(self, report: str) -> dict[str, str]:
        """Findings that a report states: label -> 'uncertain' or 'present' (see `Reader.read`)."""
        return self._reader.read(report)

    # ------------------------------------------------------------------ judging

    def is_valid(self, sentence: str) -> bool:
        """Whether the grammar can produce this sentence, to the letter."""
        if not sentence[:1].isupper() or re.search(r"\b[Aa](?: [aeiou]|n [^aeiou])", sentence):
            return False
        plain = without_articles(sentence)
        return any(self._valid.fullmatch(text) is not None for text in (plain, plain[0].lower() + plain[1:]))

    def every_sentence(self) -> Iterator[tuple[str, dict[str, str]]]:
        """All sentences that speak of findings (all slots filled in all ways) with what they say."""
        for phrases in self.language.phrases:
            labels = phrases.finding.labels
            for state, bilateral in itertools.product(("absent", "uncertain", "present"), (False, True)):
                for template in phrases.templates(state, bilateral):
                    for side in SIDES if "{side}" in template else ("",):
                        said = [f"{side} {phrases.finding.name}"] if side else list(labels)
                        truth = {label: state for label in said} if state != "absent" else {}
                        for text in self.expand(template, phrases.slots, side):
                            yield capitalise(with_articles(text)), truth
        for template, _ in self.language.statements:
            for text in self.expand(template, {}):
                yield capitalise(with_articles(text)), {}

    def expand(self, template: str, own: Mapping[str, SlotWords], side: str = "") -> Iterator[str]:
        """A template with all words in its slots, as templates are written: in lower case, "a" before every word.

        Args:
            template: of the language.
            own: slots of its finding, before those of the language.
            side: in the slot of that name.
        """
        slots = SLOT.findall(template)
        options = [(side,) if slot == "side" else _all_words(self._slot(slot, own)) for slot in slots]
        for words in itertools.product(*options):
            chosen = iter(words)
            yield SLOT.sub(lambda _, chosen=chosen: next(chosen), template)  # type: ignore[misc]


def _all_words(words: SlotWords) -> tuple[str, ...]:
    values = words.values() if isinstance(words, Mapping) else [words]
    return tuple(dict.fromkeys(word for value in values for word in value))


def _count(sentences: Iterable[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _agreed(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Facts that are the same on both sides."""
    return {slot: value for slot, value in facts[0].items() if facts[1].get(slot) == value}


def _sentence_pattern(language: Language) -> re.Pattern[str]:
    """One pattern for all sentences, "a" never "an"."""

    def pattern(template: str, own: Mapping[str, SlotWords]) -> str:
        parts = SLOT.split(without_articles(template))
        for i in range(1, len(parts), 2):
            words = SIDES if parts[i] == "side" else _all_words({**language.slots, **own}[parts[i]])
            parts[i] = "(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"
        parts[::2] = [re.escape(part) for part in parts[::2]]
        return "".join(parts)

    sentences = [pattern(t, p.slots) for p in language.phrases for t in _templates(p)]
    sentences += [pattern(t, {}) for t, _ in language.statements]
    starts = "|".join(map(re.escape, language.comparisons))
    openings = "".join("|" + pattern(t, {}) for t in language.openings)
    return re.compile(f"(?:{starts})?(?:{'|'.join(sentences)}){openings}")


def _templates(phrases: Phrases) -> Iterator[str]:
    for state, bilateral in itertools.product(("absent", "uncertain", "present"), (False, True)):
        yield from phrases.templates(state, bilateral)


def _check(language: Language) -> None:
    """The rules of `Phrases`."""
    for phrases in language.phrases:
        name = phrases.finding.name
        for state in ("absent", "uncertain", "present"):
            templates = phrases.templates(state)
            if len(set(templates)) < MIN_PHRASINGS:
                raise ValueError(f"{name!r} has {len(set(templates))} phrasings of {state!r}, needs {MIN_PHRASINGS}")
            sided = phrases.finding.sided and state != "absent"
            for template in templates:
                if ("{side}" in template) != sided:
                    raise ValueError(
                        f"{template!r} of {name!r} ({state}) should{'' if sided else ' not'} name {{side}}"
                    )
        for template in _templates(phrases):
            _check_template(template, {**language.slots, **phrases.slots})
    for template in (*(text for text, _ in language.statements), *language.openings):
        _check_template(template, language.slots)
    names = {phrases.finding.name for phrases in language.phrases}
    for template, about in language.statements:
        if not names.issuperset(about):
            raise ValueError(f"statement {template!r} is about unknown findings {sorted(set(about) - names)}")


def _check_template(template: str, slots: Mapping[str, SlotWords]) -> None:
    words = [word for slot in SLOT.findall(template) if slot != "side" for word in _all_words(slots.get(slot, ()))]
    for slot in SLOT.findall(template):
        if slot != "side" and not slots.get(slot):
            raise ValueError(f"template {template!r} has an unknown slot {slot!r}; there are {', '.join(slots)}")
    if any(PROMPT_END in text or not text for text in (template, *words)):
        raise ValueError(f"template {template!r} or a word of its slots is empty or holds {PROMPT_END!r}")
    if not template.endswith("."):
        raise ValueError(f"template {template!r} does not end with a period")
