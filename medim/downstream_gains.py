"""Scores and gains of Figures 5b, 5c, 6a and 6b, from the reports that the writers of the downstream study answered.

metrics/downstream.json holds `models`, model -> what metrics/<model>.json holds of any other system, and `gains`,
"<model> over <model>" -> metric key -> relative gain in per cent with its interval, number of pairs and seeds, and the
absolute one. Which models are compared stands in the tables (`Row.gain`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medim.evaluation import Evaluation, Reference, as_json, states_of
from medim.generation import read_generated
from medim.metrics.gains import SumMetrics, paired_gains
from medim.metrics.java import Meteor
from medim.metrics.report_sums import finding_sums, joined, text_sums, validity_sums
from medim.metrics.report_text import normalised
from medim.systems import Sample
from medim.table_cells import comparison, seeds_of
from medim.tables import TABLES

TASK = "image_to_report"


def compared_models(models: Collection[str]) -> list[tuple[str, str]]:
    """(of, over) of every gain that a table shows and for which both models, of any seed, are among `models`."""
    pairs = [comparison(row, table.rows) for table in TABLES for row in table.rows if row.gain]
    return [pair for pair in dict.fromkeys(pairs) if all(seeds_of(model, models) for model in pair)]


def matched_seeds(of: str, over: str, models: Collection[str]) -> list[tuple[str, str]]:
    """The models of each training seed that both have; a seed of one alone is compared with nothing.

    Raises:
        ValueError: they have no seed in common.
    """
    first, second = seeds_of(of, models), seeds_of(over, models)
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError(
            f"a gain of {of} over {over} needs a training seed that both have, got {sorted(first.values())} and "
            f"{sorted(second.values())}: add one to params.yaml:train_downstream.arms"
        )
    return [(first[seed], second[seed]) for seed in common]


class ReportReader:
    """Metrics of a model's reports of one dataset, each read and scored once.

    Args:
        generated: folder with one folder a model.
        reference: the dataset.
        meteor: the running METEOR process.
    """

    def __init__(self, generated: Path, reference: Reference, meteor: Meteor) -> None:
        self.generated, self.reference, self.meteor = generated, reference, meteor
        self.known = {normalised(pair.report) for pair in reference.train}
        self.read: dict[str, SumMetrics] = {}

    def metrics(self, model: str) -> SumMetrics:
        """All metrics of a model's reports, over the pairs that it was asked about, in the order of their ids.

        Raises:
            FileNotFoundError: the model did not answer this dataset.
        """
        if model not in self.read:
            samples = read_generated(self.generated / model / self.reference.dataset / f"{TASK}.parquet")
            said = {sample.pair_id: sample.report or "" for sample in self.reference.held_against(samples)}
            self.read[model] = self._scored(said)
        return self.read[model]

    def _scored(self, said: Mapping[str, str]) -> SumMetrics:
        reference = self.reference
        pairs = [reference.by_id[pair_id] for pair_id in sorted(said)]
        reports = [said[pair.pair_id] for pair in pairs]
        parts = [text_sums(said, {pair.pair_id: pair.report for pair in pairs}, self.known, self.meteor)]
        if reference.domain is not None and reference.labels:
            read = [reference.domain.grammar.read(report) for report in reports]
            parts.append(finding_sums(states_of(pairs), read, reference.labels))
            if reference.prose is not None:
                parts.append(validity_sums(reports, reference.prose))
        return joined(parts)


def downstream_page(
    generated: Path, references: Mapping[str, Reference], models: Sequence[str], evaluation: Evaluation, resamples: int
) -> dict[str, Any]:
    """The content of metrics/downstream.json.

    Args:
        generated: folder with one folder a model, each with <dataset>/image_to_report.parquet.
        references: dataset -> its real pairs.
        models: those that answered, all seeds.
        evaluation: of these datasets; its seed and its METEOR process serve the gains too.
        resamples: bootstrap draws of the gains.

    Raises:
        ValueError: see `matched_seeds` and `paired_gains`.
        FileNotFoundError: a model did not answer a dataset.
    """
    pages: dict[str, Any] = {}
    for model in models:
        samples = [one for name in references for one in read_generated(generated / model / name / f"{TASK}.parquet")]
        rows: dict[str, list[Sample]] = {}
        for sample in samples:
            rows.setdefault(sample.row, []).append(sample)
        scores = {row: as_json(evaluation.row(group)) for row, group in rows.items()}
        pages[model] = {"model": model, "rows": scores}
    return {"models": pages, "gains": gains(generated, references, models, evaluation, resamples)}


def gains(
    generated: Path, references: Mapping[str, Reference], models: Sequence[str], evaluation: Evaluation, resamples: int
) -> dict[str, dict[str, Any]]:
    """`gains` of metrics/downstream.json; arguments and errors as of `downstream_page`."""
    page: dict[str, dict[str, Any]] = {}
    for dataset, reference in references.items():
        reader = ReportReader(generated, reference, evaluation.meteor)
        for of, over in compared_models(models):
            seeds = matched_seeds(of, over, models)
            first, second = ([reader.metrics(pair[side]) for pair in seeds] for side in (0, 1))
            for metric, gain in paired_gains(first, second, evaluation.seed, resamples).items():
                absolute = dict(zip(("value", "low", "high"), gain.absolute[:3], strict=True))
                relative = dict(zip(("value", "low", "high", "n"), gain.relative, strict=True))
                entry = {**relative, "seeds": len(seeds), "absolute": absolute}
                page.setdefault(f"{of} over {over}", {})[f"{dataset}/{TASK}/{metric}"] = entry
    return page
