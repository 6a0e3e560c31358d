"""Every metric of a system's answers, dataset by dataset: `<dataset>/<task>/<metric>` -> Estimate.

A metric that a dataset cannot have (findings of real pictures that nobody labelled) is left out and is "not measured"
in the tables. Real pictures of the test split are the reference of all set metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medim.data import get_domain, is_drawn
from medim.data.domain import Domain, Findings, Grammar, labels_of
from medim.data.report_grammar import ReportGrammar
from medim.metrics.alignment import PhantomJudge, alignment
from medim.metrics.bootstrap import Estimate, bootstrap_mean, not_measured
from medim.metrics.clinical import ClinicalSettings, ce_rules_scores, packaged_scores
from medim.metrics.contradictions import self_agreement
from medim.metrics.finding_reader import FindingReader, domains_of, features, read_pictures
from medim.metrics.findings import (
    distinct_sets_ratio,
    finding_f1_ratio,
    finding_frequency,
    finding_scores,
    findings_within_30pct,
    sentence_validity,
    silent_pairs,
)
from medim.metrics.image_quality import QualitySettings, inception_image_quality, phantom_image_quality
from medim.metrics.java import Meteor
from medim.metrics.memorisation import nearest_train_gap
from medim.metrics.qwen_judge import QwenJudge, QwenSettings, load_qwen_judge, qwen_alignment
from medim.metrics.report_text import coco_scores, copied_from_train, distinct_reports, length_ratio, nltk_scores
from medim.metrics.sides import side_scores
from medim.pairs import Pair, load_images, read_pairs
from medim.side_answers import TASK as SIDE
from medim.side_answers import SideScore
from medim.systems import Sample

Scores = dict[str, Estimate]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class EvaluationSettings:
    """What all metrics share."""

    resamples: int  # bootstrap draws
    quality: QualitySettings
    inception_weights: str | None  # torch-fidelity's Inception file; null = proxy features only
    qwen: QwenSettings | None  # the paper's judge of free pairs; null = the phantom judge only
    ce_rules: tuple[str, ...]  # datasets of chest films: CheXpert's labels by rules are compared too
    clinical: ClinicalSettings | None = None  # CheXbert, RadGraph, RadEval, where they are installed


UNKNOWN = ""  # dataset of a free sample that nothing recognises


class Reference:
    """The real pairs of one dataset that answers are held against.

    Args:
        dataset: its name.
        test: Parquet file of its test pairs.
        train: Parquet file of the training pairs that it is compared with.
        reader: the judge of pictures.
        trained_as: the dataset of `train`, where that is another one: it stands in for a test-only dataset, and its
            grammar says which sentences a system that learned from it should write.
        kept: ids of the test pairs whose reports answers are held against, see `medim.report_filter`; None: all.
    """

    def __init__(
        self, dataset: str, test: Path, train: Path, reader: FindingReader, trained_as: str | None = None,
        kept: frozenset[str] | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.reader, self.kept = dataset, reader, kept
        self.test = read_pairs(test)
        self.by_id = {pair.pair_id: pair for pair in self.test}
        self.train_file = train
        self.domain: Domain | None = get_domain(dataset) if is_drawn(dataset) else None
        self.labels = labels_of(self.domain.findings) if self.domain is not None else ()
        learned = trained_as or dataset
        self.prose: Grammar | None = get_domain(learned).grammar if is_drawn(learned) else None

    @property
    def reader_domain(self) -> str:
        """The reader's head for this dataset: its own, or the one with the same labels (`phantom_cxr_ood`)."""
        heads = self.reader.config.domains
        if self.dataset in heads:
            return self.dataset
        return next(name for name, labels in heads.items() if tuple(labels) == self.labels)

    @cached_property
    def train(self) -> list[Pair]:
        """The training pairs."""
        return read_pairs(self.train_file)

    @cached_property
    def train_features(self) -> NDArray[np.float32]:
        """Reader features of the training pictures."""
        return features(self.reader, load_images(self.train))

    @cached_property
    def test_images(self) -> Images:
        """The test pictures."""
        return load_images(self.test)

    @cached_property
    def frequency(self) -> dict[str, float]:
        """Share of training pairs with each label."""
        return finding_frequency(states_of(self.train), self.labels)

    def asked(self, samples: Sequence[Sample]) -> list[Sample]:
        """Answers, one a pair, to the first test pairs, as many as there are answers: none is missing, none twice.

        Raises:
            ValueError: a pair was left out, answered twice, or is not in the test split.
        """
        wanted, given = [pair.pair_id for pair in self.test[: len(samples)]], [sample.pair_id for sample in samples]
        if sorted(wanted) != sorted(given):
            gone = sorted(set(wanted) - set(given))
            raise ValueError(
                f"{self.dataset}: {len(samples)} answers are not one to each of its first {len(wanted)} test pairs"
                f"{f' (first without one: {gone[0]})' if gone else ''}: run `dvc repro generate` again"
            )
        return list(samples)

    def held_against(self, samples: Sequence[Sample]) -> list[Sample]:
        """The image_to_report answers that count: those to pairs whose reports were kept, each of which must be there.

        Raises:
            ValueError: a kept pair was not answered, or twice; where all are kept, see `asked`.
        """
        if self.kept is None:
            return self.asked(samples)
        found = [sample for sample in samples if sample.pair_id in self.kept]
        missing = self.kept - {sample.pair_id for sample in found}
        if len(found) > len(self.kept):
            raise ValueError(f"{self.dataset}: kept reports were answered twice: run `dvc repro generate` again")
        if missing:
            raise ValueError(
                f"{self.dataset}: {len(missing)} of the {len(self.kept)} kept reports were not answered (first "
                f"{min(missing)}): ask about all test pairs (params.yaml:generate.pairs, train_downstream.test_pairs)"
            )
        return found

    def read_images(self, images: Images) -> list[dict[str, str]]:
        """Findings that the reader sees."""
        return read_pictures(self.reader, images, self.reader_domain)


def states_of(pairs: Sequence[Pair]) -> list[Findings]:
    """True findings of drawn pairs.

    Raises:
        ValueError: a pair has none.
    """
    states = [pair.states for pair in pairs]
    if any(found is None for found in states):
        raise ValueError("a drawn pair has no findings: run `dvc repro prepare_data`")
    return [found for found in states if found is not None]


class Evaluation:
    """Scores the samples of one table row."""

    def __init__(
        self, references: Mapping[str, Reference], prompts: Mapping[str, str], settings: EvaluationSettings,
        meteor: Meteor, seed: int,
    ) -> None:  # fmt: skip
        self.references, self.prompts, self.settings = references, prompts, settings
        self.meteor, self.seed = meteor, seed

    @cached_property
    def qwen(self) -> QwenJudge | None:
        """The vision-language judge, where there is one; loaded when it is first asked.

        Raises:
            FileNotFoundError, ValueError: see `load_qwen_judge`.
        """
        if self.settings.qwen is None:
            return None
        reader = next(iter(self.references.values())).reader
        return load_qwen_judge(self.settings.qwen, next(reader.parameters()).device)

    def row(self, samples: Sequence[Sample]) -> Scores:
        """All metrics of one row's samples."""
        scores: Scores = {}
        groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            groups.setdefault((sample.task, sample.dataset), []).append(sample)
        for (task, dataset), group in sorted(groups.items()):
            if task == "image_to_report":
                scores |= _named(dataset, task, self.reports(self.references[dataset], group))
            elif task == "report_to_image":
                scores |= _named(dataset, task, self.pictures(self.references[dataset], group))
            else:
                scores |= self.joint(group)
        return scores

    def reports(self, reference: Reference, samples: Sequence[Sample]) -> Scores:
        """image_to_report: texts against the references of the pairs whose pictures were shown."""
        seed, resamples = self.seed, self.settings.resamples
        said = {sample.pair_id: sample.report or "" for sample in reference.held_against(samples)}
        true = {pair_id: reference.by_id[pair_id].report for pair_id in said}
        scores = coco_scores(said, true, self.meteor, seed, resamples) | nltk_scores(said, true, seed, resamples)
        scores["length_ratio"] = length_ratio(said, true, seed, resamples)
        scores["distinct_reports"] = distinct_reports(list(said.values()), seed, resamples)
        known = [pair.report for pair in reference.train]
        scores["copied_from_train"] = copied_from_train(list(said.values()), known, seed, resamples)
        if reference.dataset in self.settings.ce_rules:
            scores |= ce_rules_scores(said, true, seed, resamples)
        clinical = self.settings.clinical
        if clinical is not None and reference.dataset in clinical.datasets:
            device = next(reference.reader.parameters()).device.type
            scores |= packaged_scores(said, true, clinical, device, seed, resamples)
        if reference.domain is not None and reference.labels:
            grammar = reference.domain.grammar
            truth = states_of([reference.by_id[pair_id] for pair_id in said])
            read = [grammar.read(report) for report in said.values()]
            scores |= finding_scores(truth, read, reference.labels, seed, resamples)
            if reference.prose is not None:
                written = list(said.values())
                scores["sentence_validity"] = sentence_validity(written, reference.prose, seed, resamples)
                if isinstance(reference.prose, ReportGrammar):
                    scores |= self_agreement(written, truth, reference.labels, reference.prose, seed, resamples)
        return scores

    def pictures(self, reference: Reference, samples: Sequence[Sample]) -> Scores:
        """report_to_image: pictures against the reports that were given and against real pictures as a set."""
        seed, resamples = self.seed, self.settings.resamples
        samples = reference.asked(samples)
        images = _images(samples)
        scores = self.quality(reference, images)
        scores["nearest_train_gap"] = nearest_train_gap(
            features(reference.reader, images), features(reference.reader, reference.test_images),
            [reference.train_features], seed, resamples,
        )  # fmt: skip
        if reference.labels:
            given = [reference.by_id[sample.pair_id] for sample in samples]
            truth = states_of(given)
            drawn, real = reference.read_images(images), reference.read_images(load_images(given))
            scores |= finding_scores(truth, drawn, reference.labels, seed, resamples)
            of_real = finding_scores(truth, real, reference.labels, seed, resamples)
            scores["finding_f1_of_real"] = of_real["finding_f1"]
            kept = finding_f1_ratio(truth, drawn, real, reference.labels, seed, resamples)
            scores["finding_f1_ratio"] = kept["finding_f1_ratio"]
        return scores

    def sides(self, asked: Sequence[SideScore]) -> Scores:
        """Scores of reports with and without their sides exchanged, a dataset each."""
        scores: Scores = {}
        for dataset in sorted({one.dataset for one in asked}):
            group = [one for one in asked if one.dataset == dataset]
            both = [(o.s_true, o.s_exchanged) for o in group if o.s_true is not None and o.s_exchanged is not None]
            true, exchanged = [first for first, _ in both], [second for _, second in both]
            found = side_scores(true, exchanged, len(group), self.seed, self.settings.resamples)
            scores |= _named(dataset, SIDE, found)
        return scores

    def quality(self, reference: Reference, images: Images) -> Scores:
        """FID, IS, KID, precision and recall: proxies, and the real ones where the Inception file is given."""
        n, m = len(images), len(reference.test_images)
        if min(n, m) < 2:
            return {}
        base = self.settings.quality
        settings = replace(
            base, kid_subset_size=min(base.kid_subset_size, n, m), neighbours=min(base.neighbours, n - 1, m - 1),
            is_splits=min(base.is_splits, n),
        )  # fmt: skip
        scores = phantom_image_quality(reference.reader, images, reference.test_images, settings, self.seed)
        if self.settings.inception_weights is not None:
            device = next(reference.reader.parameters()).device
            weights = Path(self.settings.inception_weights)
            real = _blocks(reference.test_images)
            scores |= inception_image_quality(weights, _blocks(images), real, settings, self.seed, device)
        return scores

    def joint(self, samples: Sequence[Sample]) -> Scores:
        """Unconditional pairs: each is judged as the dataset it turned into; `share` says how many turned into each."""
        turned = self.turned_into(samples)
        scores: Scores = {}
        for dataset, reference in self.references.items():
            if dataset not in self.prompts:
                continue
            group = [sample for sample, into in zip(samples, turned, strict=True) if into == dataset]
            share = bootstrap_mean([float(into == dataset) for into in turned], self.seed, self.settings.resamples)
            found = self.joint_of(reference, group) if group else {"finding_f1": not_measured(0)}
            scores |= _named(dataset, "joint", {"share": share, **found})
        return scores

    def turned_into(self, samples: Sequence[Sample]) -> list[str]:
        """See `free_datasets`."""
        return free_datasets(samples, self.references, self.prompts)

    def joint_of(self, reference: Reference, samples: Sequence[Sample]) -> Scores:
        """Agreement of the two halves of each pair, and whether the pairs are as varied as real ones.

        `known_prompts`: the share whose prompt (modality, organ) is that of a training pair, to the letter.
        """
        seed, resamples = self.seed, self.settings.resamples
        images, reports = _images(samples), [sample.report or "" for sample in samples]
        scores = self.quality(reference, images)
        scores["distinct_reports"] = distinct_reports(reports, seed, resamples)
        prompts = {pair.prompt for pair in reference.train}
        scores["known_prompts"] = bootstrap_mean([float(one.prompt in prompts) for one in samples], seed, resamples)
        if self.qwen is not None:
            scores |= qwen_alignment(self.qwen, images, reports, seed, resamples)
        if reference.domain is not None and reference.labels:
            grammar = reference.domain.grammar
            said, seen = [grammar.read(report) for report in reports], reference.read_images(images)
            scores |= finding_scores(said, seen, reference.labels, seed, resamples)
            scores["silent_pairs"] = silent_pairs(said, seen, seed, resamples)
            scores["sentence_validity"] = sentence_validity(reports, grammar, seed, resamples)
            if isinstance(grammar, ReportGrammar):
                scores |= self_agreement(reports, seen, reference.labels, grammar, seed, resamples)
            scores["findings_within_30pct"] = findings_within_30pct(said, reference.frequency, seed, resamples)
            real = states_of(reference.train)
            scores["distinct_sets_ratio"] = distinct_sets_ratio(said, real, seed, resamples)
            judge = PhantomJudge(grammar, reference.read_images, reference.labels)
            scores["alignment (phantom judge)"] = alignment(judge, images, reports, seed, resamples)
        return scores


def free_datasets(
    samples: Sequence[Sample], references: Mapping[str, Reference], prompts: Mapping[str, str]
) -> list[str]:
    """The dataset of each free sample: by its prompt where that names one, else by what the reader takes it for.

    UNKNOWN where the prompt names none and the reader was trained on none of the datasets.

    Args:
        samples: of the task joint.
        references: the datasets that they may have turned into.
        prompts: see `modality_prompts`.
    """
    named = [next((name for name, start in prompts.items() if one.prompt.startswith(start)), None) for one in samples]
    unnamed = [one for one, name in zip(samples, named, strict=True) if name is None]
    seen = iter(_looks_like(unnamed, references, prompts))
    return [name or next(seen) for name in named]


def _looks_like(
    samples: Sequence[Sample], references: Mapping[str, Reference], prompts: Mapping[str, str]
) -> list[str]:
    if not samples:
        return []
    reader = next(iter(references.values())).reader
    known = [name for name in prompts if name in reader.config.domains]
    return domains_of(reader, _images(samples), known) if known else [UNKNOWN] * len(samples)


def _named(dataset: str, task: str, scores: Mapping[str, Estimate]) -> Scores:
    return {f"{dataset}/{task}/{metric}": score for metric, score in scores.items()}


def _images(samples: Sequence[Sample]) -> Images:
    return np.stack([sample.image for sample in samples if sample.image is not None])


def _blocks(images: Images, size: int = 32) -> Iterator[Images]:
    return (images[start : start + size] for start in range(0, len(images), size))


def modality_prompts(references: Mapping[str, Reference]) -> dict[str, str]:
    """Dataset -> the words that all its prompts begin with (modality), for datasets with training pairs."""
    out: dict[str, str] = {}
    for dataset, reference in references.items():
        prompts = Counter(pair.prompt.split(",")[0].split(" of ")[0] for pair in reference.train)
        if prompts and not any(prompts.most_common(1)[0][0] == known for known in out.values()):
            out[dataset] = prompts.most_common(1)[0][0]
    return out


def as_json(scores: Mapping[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    """Scores as they stand in metrics/<model>.json."""
    return {
        name: dict(zip(("value", "low", "high", "n"), score, strict=True)) for name, score in sorted(scores.items())
    }
