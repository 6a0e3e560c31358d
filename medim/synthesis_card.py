"""The data card of a generator's synthetic pairs (Markdown) and their contact sheets.

A card says what was asked of which model, how the pairs score beside real held-out ones, and what filters would keep.
The same files give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from medim.evaluation import Reference
from medim.figures import save_png
from medim.metrics.bootstrap import Estimate, bootstrap_mean, not_measured
from medim.metrics.estimate_text import estimate_text
from medim.metrics.findings import sentence_validity
from medim.metrics.memorisation import median_gap
from medim.metrics.report_text import copied_from_train, distinct_reports
from medim.pairs import decode_png
from medim.report_filter import PHANTOM_JUDGE
from medim.sample_sheets import cells_of, heading_of, sheet_of
from medim.synthesis import TASK, read_held_out
from medim.synthesis_filters import NO_FILTER, PairFilter, filter_quality, kept, read_scores
from medim.systems import Sample

Floats = NDArray[np.float64]

NEAR = 0.05  # pairs nearer to training than this share of real held-out pictures are counted
WARNING = (
    "These pairs are made by a model. They show no patient, their findings are what the model wrote, and no physician "
    "has looked at them: they are for research on models, never for care."
)


@dataclass(frozen=True)
class CardSettings:
    """What a card measures and how large its contact sheets are; the values stand in params.yaml."""

    resamples: int  # bootstrap draws
    filters: tuple[PairFilter, ...]  # filters that are measured, none of them applied
    columns: int  # pictures of a row of the contact sheet
    zoom: int  # pixels a pixel

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        for name, least in (("resamples", 2), ("columns", 1), ("zoom", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def data_card(
    generator: str, facts: Mapping[str, Any], folder: Path, references: Mapping[str, Reference],
    settings: CardSettings, seed: int,
) -> str:  # fmt: skip
    """The card as Markdown.

    Args:
        generator: name of the model.
        facts: what made the pairs (hash of the model, seed, sampler, …), as JSON.
        folder: with <dataset>.parquet of every dataset and the scores of held-out pairs.
        references: dataset -> its real pairs.
        settings: see `CardSettings`.
        seed: of the bootstrap.
    """
    parts = [f"# Synthetic pairs by {generator}", f"> {WARNING}"]
    parts += [f"Made by\n\n```json\n{json.dumps(facts, indent=1, sort_keys=True)}\n```"]
    parts += ["Numbers in brackets are 95 % bootstrap intervals over pairs."]
    for dataset, reference in references.items():
        parts += _dataset_part(dataset, reference, folder, settings, seed)
    return "\n\n".join(parts) + "\n"


def _dataset_part(dataset: str, reference: Reference, folder: Path, settings: CardSettings, seed: int) -> list[str]:
    path = folder / f"{dataset}.parquet"
    scores, held_out = read_scores(path), read_held_out(folder, dataset)
    texts = pq.read_table(path, columns=["asked", "report", "judge"])
    judges = ", ".join(sorted(set(filter(None, texts["judge"].to_pylist())))) or "no judge"
    asked, reports = texts["asked"].to_pylist(), texts["report"].to_pylist()
    lines = [
        (f"alignment ({judges})", *_means(scores["alignment"], held_out["alignment"], seed, settings.resamples)),
        ("picture and report have the same findings",
         *_means(scores["faithful"], held_out["faithful"], seed, settings.resamples)),
        ("pmi of report and picture, nats", *_means(scores["pmi"], None, seed, settings.resamples)),
        *_nearness(scores["nearest"], held_out["nearest"], seed, settings.resamples),
        *_texts(reports, reference, seed, settings.resamples),
    ]  # fmt: skip
    rows = [[name, estimate_text(*ours), estimate_text(*real)] for name, ours, real in lines]
    return [
        f"## {dataset}", f"{len(reports)} pairs from {len(set(asked))} prompts.",
        _table(["", "synthetic", "real, held out"], rows),
        "### Filters", _filters(scores, held_out["nearest"], judges, settings, seed),
        "### Prompts", _prompts(asked, scores),
    ]  # fmt: skip


def _means(synthetic: Floats, real: Floats | None, seed: int, resamples: int) -> tuple[Estimate, Estimate]:
    """Means of both; a score that some pair lacks is not measured."""
    first = not_measured(len(synthetic)) if np.isnan(synthetic).any() else bootstrap_mean(synthetic, seed, resamples)
    return first, not_measured(0) if real is None else bootstrap_mean(real, seed, resamples)


def _nearness(
    synthetic: Floats, real: Floats | None, seed: int, resamples: int
) -> list[tuple[str, Estimate, Estimate]]:
    """Distances to the nearest training picture."""
    there = np.zeros(0) if real is None else real
    limit = np.quantile(there, NEAR) if len(there) else np.nan
    near = bootstrap_mean(synthetic < limit, seed, resamples) if len(there) else not_measured(len(synthetic))
    own = bootstrap_mean(there < limit, seed, resamples) if len(there) else not_measured(0)
    gap = median_gap(synthetic, there, seed, resamples)
    return [
        ("median distance to the nearest training picture, minus that of real ones", gap, not_measured(0)),
        (f"nearer to training than {NEAR:.0%} of the real ones", near, own),
    ]


def _texts(
    reports: Sequence[str], reference: Reference, seed: int, resamples: int
) -> list[tuple[str, Estimate, Estimate]]:
    """What the reports are like; of training pairs only the reports are read."""
    real = [pair.report for pair in reference.test]
    known = set(pq.read_table(reference.train_file, columns=["report"])["report"].to_pylist())
    measures: dict[str, Callable[[Sequence[str]], Estimate]] = {
        "empty reports": lambda side: bootstrap_mean([not one.strip() for one in side], seed, resamples),
        "distinct reports": lambda side: distinct_reports(side, seed, resamples),
        "reports copied from training": lambda side: copied_from_train(side, known, seed, resamples),
    }
    if reference.domain is not None:
        grammar = reference.domain.grammar
        measures["valid sentences"] = lambda side: sentence_validity(side, grammar, seed, resamples)
    return [(name, measure(reports), measure(real)) for name, measure in measures.items()]


def _filters(scores: Mapping[str, Floats], real: Floats | None, judges: str, settings: CardSettings, seed: int) -> str:
    """Kept share, precision and recall of each filter against what the finding reader says."""
    names = ("kept", "faithful", "precision", "recall")
    there, rows = np.zeros(0) if real is None else real, []
    for asked in (NO_FILTER, *settings.filters):
        found = filter_quality(kept(scores, asked, there), scores["faithful"], seed, settings.resamples)
        rows.append([str(asked), *(estimate_text(*found[name]) for name in names)])
    same = (
        " That judge asks the same reader, so a filter by its alignment is judged by what it measures: its precision "
        "is no independent evidence."
    )
    note = (
        "A pair is faithful if the finding reader sees in the picture what the report says. The alignment is that of "
        f"{judges}.{same if judges == PHANTOM_JUDGE else ''} The pmi is the generator's own."
    )
    return f"{note}\n\n{_table(['filter', *names], rows)}"


def _prompts(asked: Sequence[str], scores: Mapping[str, Floats]) -> str:
    """How often each prompt was asked, and the means of its pairs."""
    rows = []
    order, names = np.array(asked), ("alignment", "faithful")
    for prompt, times in Counter(asked).items():
        mine = order == prompt
        means = [scores[name][mine].mean() for name in names]
        rows.append([prompt, str(times), *("not measured" if np.isnan(mean) else f"{mean:.3f}" for mean in means)])
    return _table(["prompt", "pairs", *names], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_sheets(
    folder: Path, generator: str, references: Mapping[str, Reference], settings: CardSettings, out: Path
) -> None:
    """Write <dataset>.png into `out`, the contact sheet of every dataset's file in `folder`."""
    for dataset, reference in references.items():
        save_png(contact_sheet(folder / f"{dataset}.parquet", generator, reference, settings), out / f"{dataset}.png")


def contact_sheet(path: Path, generator: str, reference: Reference, settings: CardSettings) -> Image.Image:
    """columns x columns pairs, evenly spaced in the first row group of a file of synthetic pairs.

    Args:
        path: see `medim.synthesis`.
        generator: stands in the heading.
        reference: the dataset.
        settings: see `CardSettings`.
    """
    file = pq.ParquetFile(path)
    rows = file.read_row_group(0).to_pylist()
    count = min(settings.columns**2, len(rows))
    chosen = [rows[place * len(rows) // count] for place in range(count)]
    samples = [
        Sample(
            generator, TASK, reference.dataset, row["pair_id"], row["seed"], decode_png(row["image"]), row["prompt"],
            row["report"], row["evaluations"],
        )
        for row in chosen
    ]  # fmt: skip
    cells = cells_of(samples, reference)
    heading = heading_of(generator, reference.dataset, TASK, cells, file.metadata.num_rows)
    return sheet_of(cells, settings.columns, settings.zoom, heading)
