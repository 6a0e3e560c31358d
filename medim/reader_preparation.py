"""From what systems generated to a study for readers (Figure 5a): which pairs are shown, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medim.data import get_domain, is_drawn
from medim.data.domain import labels_of
from medim.evaluation import Reference, free_datasets, modality_prompts
from medim.metrics.reader_findings import stated_findings
from medim.metrics.reader_phantoms import findings_of
from medim.metrics.reader_questions import (
    AGREEMENT,
    ARTEFACT,
    CONFIDENCE,
    ERRORS,
    ORIGIN,
    REAL,
    REALISM,
    Question,
    finding_questions,
)
from medim.metrics.reader_sheet import Key
from medim.pairs import decode_png
from medim.reader_page import Study, StudyPair, StudySettings, build_study, sample_pair
from medim.systems import Sample

QUESTIONS = {
    "agreement": (AGREEMENT,), "realism": (REALISM,), "origin": (ORIGIN,), "confidence": (CONFIDENCE,),
    "errors": ERRORS, "artefact": (ARTEFACT,),
}  # fmt: skip
NO_STUDY = (
    "<!DOCTYPE html>\n<title>No study</title><p>No study: params.yaml:prepare_reader_study.models is empty.</p>\n"
)
FINDINGS = "findings"  # asked of drawn datasets: their labels are known


@dataclass(frozen=True)
class ReaderStudy:
    """params.yaml:prepare_reader_study.study.

    Attributes:
        datasets: dataset -> how the page calls it.
        questions: keys of QUESTIONS, and FINDINGS.
        pairs: of all systems together; the paper's 100.
        repeats: share of the pairs that each reader is shown a second time.
        title: of the page.
        introduction: what a reader is told before he begins.
    """

    datasets: dict[str, str]
    questions: tuple[str, ...]
    pairs: int
    repeats: float
    title: str
    introduction: str

    def settings(self, systems: Sequence[str], seed: int) -> StudySettings:
        """The page's settings, with systems by their table rows.

        Raises:
            ValueError: an unknown question; or see `StudySettings`.
        """
        return StudySettings(
            self.title, self.introduction, asked(self.questions, self.datasets), self.datasets, tuple(systems),
            self.pairs, self.repeats, seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """A model's free pairs; `origin`: hash of the file that they stand in."""

    samples: Sequence[Sample]
    origin: str


def asked(names: Sequence[str], datasets: Mapping[str, str]) -> tuple[Question, ...]:
    """The questions of these names.

    Raises:
        ValueError: there is no such question; names those that exist.
    """
    found: list[Question] = []
    for name in names:
        if name == FINDINGS:
            for dataset in filter(is_drawn, datasets):
                found += finding_questions(dataset, findings_of(labels_of(get_domain(dataset).findings)))
        elif name in QUESTIONS:
            found += QUESTIONS[name]
        else:
            raise ValueError(f"no question {name!r} for readers: there are {', '.join((*QUESTIONS, FINDINGS))}")
    return tuple(found)


def prepare_study(
    models: Sequence[str], spec: ReaderStudy, answers: Mapping[str, Answers], references: Mapping[str, Reference],
    seed: int,
) -> Study:  # fmt: skip
    """Page and key.

    Args:
        models: those that are compared, as many pairs of each, and `real` for test pairs; none: no study.
        spec: what is shown and asked.
        answers: model -> its free pairs, for every one of `models` but `real`.
        references: the datasets that free pairs may have turned into.
        seed: of choice, order and ids.

    Raises:
        ValueError: a model has no free pairs; or see `build_study`.
    """
    if not models:
        return Study(NO_STUDY, Key("none", (), 0, {}))
    pairs: list[StudyPair] = []
    systems: list[str] = []
    for model in models:
        if model == REAL:
            pairs += real_pairs(references)
            systems.append(REAL)
            continue
        found = answers[model]
        free = [sample for sample in found.samples if sample.task == "joint"]
        if not free:
            raise ValueError(
                f"{model} has no free pairs (task joint) to show: run `dvc repro generate@{model}` with joint in "
                f"params.yaml:generate.tasks, or take {model} out of params.yaml:prepare_reader_study.models"
            )
        systems.append(free[0].row)
        free = [sample for sample in free if sample.row == free[0].row]
        turned = free_datasets(free, references, modality_prompts(references))
        pairs += [sample_pair(one, into, "", found.origin) for one, into in zip(free, turned, strict=True)]
    pairs = [replace(pair, stated=stated_by(references.get(pair.dataset), pair.report)) for pair in pairs]
    return build_study(pairs, spec.settings(systems, seed))


def stated_by(reference: Reference | None, report: str) -> dict[str, str] | None:
    """What a report of a drawn dataset states, see `medim.metrics.reader_sheet.Case`; None: of an unknown dataset."""
    return (
        None
        if reference is None or reference.domain is None
        else stated_findings(reference.domain.grammar.read(report))
    )


def real_pairs(references: Mapping[str, Reference]) -> list[StudyPair]:
    """The test pairs of all datasets."""
    return [
        StudyPair(REAL, name, decode_png(pair.image), pair.report, "", {"pair_id": pair.pair_id, "source": pair.source})
        for name, reference in references.items()
        for pair in reference.test
    ]


def shown(study: Study) -> str:
    """One line: how many pairs of which system and dataset a study shows."""
    count: dict[tuple[str, str], int] = {}
    for case in study.key.cases.values():
        count[case.system, case.dataset] = count.get((case.system, case.dataset), 0) + 1
    parts = [f"{number} of {system} that show {dataset}" for (system, dataset), number in sorted(count.items())]
    return f"study {study.key.study}: {', '.join(parts) or 'no pairs'}"
