"""Words of reports as ids, as R2Gen has them: 0 begins, ends and pads a text, 1..V are words, rare words are <unk>.

Source: the Tokenizer of cuhksz-nlp/R2Gen, modules/tokenizers.py. Two cleanings of "<prompt>: <report>":

    plain   lower case; "1.5 cm", "2/3" and "x-ray" stay words, every other mark is a word of its own
    r2gen   the published one for MIMIC-CXR, for published vocabularies and numbers; with its defects: "1.5 cm" becomes
            "15 cm", "2/3" becomes "23", "Fracture of C1. No edema" becomes "fracture of cno edema .", all marks but
            hyphens go, and every sentence, an empty one too, is given its full stop

Differs from the published one: the ":" after the prompt is a word under both cleanings, so that a written text can be
split again (`medim.pairs.split_prompt`); no text is cut unless the settings say so; `decode` sets marks, and the
capitals of sentences, as in print.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medim.data.report_cleaning import CLEANINGS, clean_report, without_marks
from medim.pairs import PROMPT_END

EDGE = 0  # begins, ends and pads
UNKNOWN = "<unk>"
LONG_TEXTS = ("error", "cut")

_PLAIN = re.compile(r"\w+(?:(?:(?<=\d)[.,](?=\d)|[-'/](?=\w))\w+)*|[^\w\s]")


def plain_words(text: str) -> list[str]:
    """Words and marks of a text in lower case."""
    return _PLAIN.findall(text.lower())


def r2gen_words(report: str) -> list[str]:
    """What R2Gen leaves of a report, see medim.data.report_cleaning."""
    return clean_report(report, "r2gen").split()


def words_of(text: str, cleaning: str) -> list[str]:
    """Words of "<prompt>: <report>", or of a report alone.

    Raises:
        ValueError: unknown cleaning.
    """
    if cleaning not in CLEANINGS:
        raise ValueError(f"cleaning must be one of {', '.join(CLEANINGS)}, got {cleaning!r} (params.yaml)")
    if cleaning == "plain":
        return plain_words(text)
    prompt, found, report = text.partition(PROMPT_END)
    if not found:
        return r2gen_words(text)
    return [*without_marks(prompt.lower()).split(), PROMPT_END, *r2gen_words(report)]


def readable(words: Sequence[str]) -> str:
    """Words joined by blanks, but none before a closing mark or behind an opening one."""
    text = re.sub(r" ([.,;:!?%)\]}])", r"\1", " ".join(words))
    return re.sub(r"([(\[{]) ", r"\1", text)


def capitalised(text: str) -> str:
    """A report, or "<prompt>: <report>", with a capital where a sentence of the report begins."""
    prompt, mark, report = text.partition(PROMPT_END)
    if not mark:
        prompt, report = "", text
    return prompt + mark + re.sub(r"(?:^ ?|(?<=[.!?] ))[a-z]", lambda first: first[0].upper(), report)


@dataclass(frozen=True)
class WordSettings:
    """How texts become words; the values stand in params.yaml."""

    threshold: int  # a word that the training texts hold less often is unknown; published: 3 (IU), 10 (MIMIC)
    cleaning: str  # plain | r2gen
    max_length: int  # words of a text, the prompt's among them, that are written, and learned, at most
    long_texts: str  # error | cut: what happens to longer training texts; a text that is cut has no end to learn

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: names the value that is impossible.
        """
        for name in ("threshold", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in (("cleaning", CLEANINGS), ("long_texts", LONG_TEXTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


class ReportWords:
    """A vocabulary: texts to ids and back."""

    def __init__(self, words: Sequence[str], cleaning: str) -> None:
        """`words`: word of id 1, 2, …

        Raises:
            ValueError: a word stands twice, <unk> is missing, or an unknown cleaning.
        """
        words_of("", cleaning)
        self.words, self.cleaning = tuple(words), cleaning
        self.ids = {word: number for number, word in enumerate(self.words, start=1)}
        if len(self.ids) != len(self.words) or UNKNOWN not in self.ids:
            raise ValueError(f"a vocabulary holds {UNKNOWN} and each word once, got {len(self.words)} words")

    @classmethod
    def build(cls, texts: Sequence[str], threshold: int, cleaning: str) -> ReportWords:
        """The words of training texts in alphabetical order, <unk> among them, and ":" where a text has a prompt.

        Raises:
            ValueError: no word is as frequent as the threshold.
        """
        counts = Counter(word for text in texts for word in words_of(text, cleaning))
        kept = {word for word, count in counts.items() if count >= threshold or word == PROMPT_END}
        if not kept - {PROMPT_END}:
            raise ValueError(f"none of {len(counts)} words stands {threshold} times in {len(texts)} training texts")
        return cls(sorted(kept | {UNKNOWN}), cleaning)

    @property
    def num_ids(self) -> int:
        """V + 1: what a network predicts."""
        return len(self.words) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a whole text, without begin and end."""
        unknown = self.ids[UNKNOWN]
        return [self.ids.get(word, unknown) for word in words_of(text, self.cleaning)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text before the first 0, as in print.

        Raises:
            ValueError: an id is no word.
        """
        words: list[str] = []
        for number in ids:
            if number == EDGE:
                break
            if not 0 < number <= len(self.words):
                raise ValueError(f"word ids must lie in [0, {len(self.words)}], got {number}: another vocabulary?")
            words.append(self.words[number - 1])
        return capitalised(readable(words))

    def batch(self, texts: Sequence[str], most: int | None) -> tuple[Tensor, Tensor]:
        """B texts as ids (B, T + 1) int64, begun and padded with 0, and (B, T) bool: which of ids[:, 1:] are learned.

        Learned are the words and the end. Of a text of more than `most` words (None: no limit) the first `most` are
        learned and no end.
        """
        rows = [self.encode(text) for text in texts]
        learned = [len(row) + 1 if most is None or len(row) <= most else most for row in rows]
        ids = torch.full((len(rows), 1 + max(learned)), EDGE)
        mask = torch.zeros(len(rows), max(learned), dtype=torch.bool)
        for number, (row, count) in enumerate(zip(rows, learned, strict=True)):
            kept = row[:count]
            ids[number, 1 : 1 + len(kept)] = torch.tensor(kept, dtype=torch.int64)
            mask[number, :count] = True
        return ids, mask

    def config(self) -> dict[str, Any]:
        """What `of_config` makes this vocabulary from, as JSON."""
        return {"words": list(self.words), "cleaning": self.cleaning}

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> ReportWords:
        """The inverse of `config`."""
        return cls(config["words"], config["cleaning"])


def check_lengths(words: ReportWords, texts: Sequence[str], settings: WordSettings, method: str) -> int:
    """How many training texts have more than `max_length` words; they are reported, or refused.

    Raises:
        ValueError: there are some, and `long_texts` is "error".
    """
    lengths = [len(words.encode(text)) for text in texts]
    longer = sum(length > settings.max_length for length in lengths)
    if longer:
        found = (
            f"{longer} of {len(texts)} training texts have more than max_length = {settings.max_length} words "
            f"(the longest {max(lengths)})"
        )
        if settings.long_texts == "error":
            raise ValueError(
                f"{method}: {found}: raise max_length or set long_texts: cut "
                f"(params.yaml:train_baseline.settings.{method}.words)"
            )
        print(f"{method}: {found}: their ends are cut off and not learned", flush=True)
    return longer
