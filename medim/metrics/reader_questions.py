"""What a reader is asked of a pair, and the columns of the sheet that comes back: one row a showing (reader_sheet.py).

A question has a few answers, each chosen by a digit. Scales go from 1 (worst) to 5 (best). They are those of
published studies: agreement and realism (arXiv 2510.22166), real or generated with confidence (2503.20967), errors by
kind and weight (Flamingo-CXR), artefacts (2508.07128), findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FIRST_COLUMNS = ("study", "reader", "years", "device", "order", "case", "pass")  # then one column a question
LAST_COLUMNS = ("seconds", "started", "finished", "comment")
REAL = "real"  # what a study calls the system whose pairs are real
GENERATED = "generated"
MOST_OPTIONS = 9  # digits of a keyboard
FINDING = "finding: "  # begins the ids of questions for one finding


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its column in the sheet.
        text: as the reader sees it.
        options: (value in the sheet, words on the button), chosen by the digits 1, 2, ...; of an optional question the
            first is what no answer counts as.
        ordered: whether the options are a scale; their values are then numbers.
        required: whether a showing without an answer is unfinished.
        datasets: the datasets whose pairs it is asked of; () = all.
    """

    id: str
    text: str
    options: tuple[tuple[str, str], ...]
    ordered: bool
    required: bool
    datasets: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check id and options.

        Raises:
            ValueError: the id is empty or a fixed column, or the options are too few, too many, alike or no scale.
        """
        if not self.id.strip() or self.id in (*FIRST_COLUMNS, *LAST_COLUMNS):
            raise ValueError(f"question id {self.id!r} is empty or the name of a fixed column of the sheet")
        if not 2 <= len(self.options) <= MOST_OPTIONS or len(set(self.values)) < len(self.options):
            raise ValueError(
                f"question {self.id!r} needs 2 to {MOST_OPTIONS} options, all different, got {self.values}"
            )
        if self.ordered and not all(_is_number(value) for value in self.values):
            raise ValueError(f"question {self.id!r} is a scale: its values must be numbers, got {self.values}")
        if "" in self.values:
            raise ValueError(f"question {self.id!r} has an option with an empty value, which means no answer")

    @property
    def values(self) -> tuple[str, ...]:
        """What may stand in the sheet."""
        return tuple(value for value, _ in self.options)

    def asked_of(self, dataset: str) -> bool:
        """Whether it is asked of the pairs of a dataset."""
        return not self.datasets or dataset in self.datasets


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def scale(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Options 1, 2, ... with these words."""
    return tuple((str(number), word) for number, word in enumerate(words, start=1))


AGREEMENT = Question(
    "agreement", "How well does the report describe this picture?",
    scale(("not at all", "poorly", "in part", "mostly", "fully")), True, True, (),
)  # fmt: skip
REALISM = Question(
    "realism", "How realistic is the picture?",
    scale(("clearly artificial", "rather artificial", "hard to say", "rather real", "like a real one")), True, True, (),
)  # fmt: skip
ORIGIN = Question(
    "origin", "Is this pair real or generated?", ((REAL, "real"), (GENERATED, "generated")), False, True, ()
)
CONFIDENCE = Question(
    "confidence", "How sure are you of that?", scale(("a guess", "unsure", "fairly sure", "sure", "certain")), True,
    True, (),
)  # fmt: skip
ERROR_KINDS = {
    "false finding": "The report names a finding that is not there",
    "missed finding": "The report misses a finding",
    "wrong side or site": "A finding is on the wrong side or at the wrong site",
    "wrong severity": "A finding is too strong or too weak",
    "comparison": "The report compares with a study that it cannot know",
    "missed comparison": "The report leaves out a comparison that it should make",
}
ERROR_OPTIONS = (("none", "no"), ("insignificant", "yes, insignificant"), ("significant", "yes, significant"))
ERRORS = tuple(Question(f"error: {kind}", text, ERROR_OPTIONS, False, False, ()) for kind, text in ERROR_KINDS.items())
ARTEFACT = Question(
    "artefact", "Is there an artefact in the picture?",
    (("none", "none"), ("blur", "blur or blocks"), ("anatomy", "impossible anatomy"), ("texture", "wrong texture"),
     ("other", "other (see comment)")), False, False, (),
)  # fmt: skip


def finding_questions(dataset: str, labels: Sequence[str]) -> tuple[Question, ...]:
    """One optional question a finding of a dataset: present, absent, or unsure (also: not answered)."""
    options = (("unsure", "cannot tell"), ("present", "present"), ("absent", "absent"))
    return tuple(
        Question(f"{FINDING}{label}", f"Does the picture show: {label}?", options, False, False, (dataset,))
        for label in labels
    )


def sheet_columns(questions: Sequence[Question]) -> tuple[str, ...]:
    """Columns of a sheet with these questions."""
    return (*FIRST_COLUMNS, *(question.id for question in questions), *LAST_COLUMNS)


def check_questions(questions: Sequence[Question], datasets: Iterable[str]) -> None:
    """Hold the questions of one study together.

    Raises:
        ValueError: a dataset is asked no required one, or two have one id.
    """
    for dataset in datasets:
        if not any(question.required and question.asked_of(dataset) for question in questions):
            raise ValueError(
                f"pairs of {dataset!r} are asked no required question: give the study one, e.g. AGREEMENT of "
                f"medim.metrics.reader_questions"
            )
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"two questions of the study have the id {question.id!r}: a sheet has one column for each")
        seen.add(question.id)
