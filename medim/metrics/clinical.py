"""Clinical scores of generated chest reports: by our own rules, by packages where they are installed, by label files.

    ce_rules_*    labels by medim/metrics/chest_labels.py; always there
    chexbert_*    labels by CheXbert (Smit et al. 2020), run by the package `f1chexbert` or `radeval`
    radgraph_*    RadGraph F1 (Jain et al. 2021; Delbrouck et al. 2022), by the package `radgraph` or `radeval`
    <key> (radeval)   any score that RadEval gives report by report
    ce_table_*    labels read from CSV files of an outside labeller, as R2Gen's compute_ce.py reads them

A name of the second to fourth kind is given only to what that package has computed: without it there is an error, no
substitute. `radeval` (the extra `clinical`) holds copies of CheXbert and RadGraph that run with transformers 5, which
`f1chexbert` and `radgraph` do not. All fetch their weights at first use. Intervals: bootstrap over reports.
An empty generated report scores 0 (labels: it gets none), whatever a network says of an empty text; RadEval's own
scores are left as they are, since some are distances.
Letters: N reports, L labels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.report_text import decode_text, is_empty
from medim.metrics.bootstrap import Estimate, bootstrap_mean
from medim.metrics.chest_labels import NEGATIVE, POSITIVE, UNCERTAIN, UNMENTIONED, label_reports
from medim.metrics.chest_phrases import LABELS
from medim.metrics.label_scores import label_scores, precision_recall
from medim.metrics.report_text import Reports, paired

Labels = NDArray[np.int8]
EXTRA = "clinical"  # of pyproject.toml
RADGRAPH_LEVELS = ("simple", "partial", "complete")  # entities; with a relation or not; with their relations
CELLS = {"": UNMENTIONED, "nan": UNMENTIONED, "1": POSITIVE, "0": NEGATIVE, "-1": UNCERTAIN}


@dataclass(frozen=True)
class ClinicalSettings:
    """What packages score of which reports; each is null or empty where it is not asked.

    Attributes:
        datasets: of chest reports in English.
        chexbert: the package that runs CheXbert, radeval | f1chexbert.
        radgraph: the package that runs RadGraph, radeval | radgraph.
        radgraph_model: see `radgraph_scores`.
        radeval: metrics of RadEval, see `radeval_scores`.
    """

    datasets: tuple[str, ...]
    chexbert: str | None
    radgraph: str | None
    radgraph_model: str
    radeval: tuple[str, ...]

    def __post_init__(self) -> None:
        """ValueError: another package than those that the adapters know."""
        for name, known in (("chexbert", ("radeval", "f1chexbert")), ("radgraph", ("radeval", "radgraph"))):
            if getattr(self, name) not in (None, *known):
                raise ValueError(f"clinical.{name} is {getattr(self, name)!r}: {' or '.join(known)}, or null")


def packaged_scores(
    generated: Reports, reference: Reports, settings: ClinicalSettings, device: str, seed: int, resamples: int
) -> dict[str, Estimate]:
    """All that `settings` asks; see `chexbert_scores`, `radgraph_scores` and `radeval_scores`, also for errors."""
    scores: dict[str, Estimate] = {}
    if settings.chexbert is not None:
        scores |= chexbert_scores(generated, reference, settings.chexbert, device, seed, resamples)
    if settings.radgraph is not None:
        model = settings.radgraph_model
        scores |= radgraph_scores(generated, reference, settings.radgraph, model, seed, resamples)
    if settings.radeval:
        scores |= radeval_scores(generated, reference, settings.radeval, seed, resamples)
    return scores


def ce_rules_scores(generated: Reports, reference: Reports, seed: int, resamples: int) -> dict[str, Estimate]:
    """F1 of labels that our rules read from both sides; see `label_scores` with prefix `ce_rules`.

    Args:
        generated: pair_id -> generated report, without its prompt.
        reference: pair_id -> true report, same ids.
        seed: seed of the bootstrap.
        resamples: its draws.

    Raises:
        ValueError: an id is on one side only, or there is no report.
    """
    said, true = paired(generated, reference)
    return label_scores("ce_rules", label_reports(true), label_reports(said), LABELS, seed, resamples)


def chexbert_scores(
    generated: Reports, reference: Reports, package: str, device: str, seed: int, resamples: int
) -> dict[str, Estimate]:
    """F1 of CheXbert's labels; see `label_scores` with prefix `chexbert`.

    With uncertain as positive, micro and macro F1 are those of the package's own report. `radeval` does not tell
    negative from not mentioned, which changes no F1.

    Args:
        generated: pair_id -> generated report.
        reference: pair_id -> true report, same ids.
        package: f1chexbert | radeval: whose CheXbert runs.
        device: cpu | cuda.
        seed: seed of the bootstrap.
        resamples: its draws.

    Raises:
        ImportError: the package is not installed; names the extra.
        RuntimeError: its weights cannot be loaded, or it does not run with the transformers that is installed.
        ValueError: see `paired`; unknown package; it answers with other labels than CheXpert's.
    """
    said, true = paired(generated, reference)
    table = chexbert_labels([*true, *said], package, device)
    return label_scores("chexbert", table[: len(true)], table[len(true) :], LABELS, seed, resamples)


def chexbert_labels(reports: Sequence[str], package: str, device: str) -> Labels:
    """CheXbert's labels (N, 14) int8, columns as in LABELS; see `chexbert_scores`. Equal reports are read once."""
    makers: dict[str, Callable[[Sequence[str], str], tuple[Sequence[str], list[Any]]]] = {
        "f1chexbert": _f1chexbert_rows,
        "radeval": _radeval_rows,
    }
    if package not in makers:
        raise ValueError(f"CheXbert is run by {' or '.join(makers)}, got package {package!r}")
    unique = list(dict.fromkeys(report for report in reports if not is_empty(report)))
    names, rows = makers[package](unique, device) if unique else (LABELS, [])
    if sorted(names) != sorted(LABELS) or any(len(row) != len(LABELS) for row in rows):
        raise ValueError(f"{package} has the labels {', '.join(names)}; expected CheXpert's: {', '.join(LABELS)}")
    order = [list(names).index(label) for label in LABELS]
    read = {report: [_cell(row[column], package) for column in order] for report, row in zip(unique, rows, strict=True)}
    nothing = [UNMENTIONED] * len(LABELS)
    return np.array([read.get(report, nothing) for report in reports], dtype=np.int8).reshape(-1, len(LABELS))


def _f1chexbert_rows(reports: Sequence[str], device: str) -> tuple[Sequence[str], list[Any]]:
    """f1chexbert 0.0.2: F1CheXbert(device=…).get_label(report, mode) -> 14 of 1, 0, -1, "" (not mentioned)."""
    scorer = _loaded("f1chexbert", "f1chexbert", lambda module: module.F1CheXbert(device=device))
    try:
        rows = [scorer.get_label(report, mode="classification") for report in reports]
    except AttributeError as error:
        if "encode_plus" not in str(error):
            raise
        raise RuntimeError(
            "f1chexbert calls BertTokenizer.encode_plus, which transformers 5 has no more: use package='radeval'"
        ) from error
    return scorer.target_names, rows


def _radeval_rows(reports: Sequence[str], device: str) -> tuple[Sequence[str], list[Any]]:
    """radeval 2.2: metrics.f1chexbert.F1CheXbert(device=…).get_labels(reports, mode) -> N rows of 14 of 1, 0, -1."""
    scorer = _loaded("radeval", "radeval.metrics.f1chexbert", lambda module: module.F1CheXbert(device=device))
    return scorer.TARGET_NAMES, scorer.get_labels(list(reports), mode="classification")


def radgraph_scores(
    generated: Reports, reference: Reports, package: str, model: str, seed: int, resamples: int
) -> dict[str, Estimate]:
    """Mean RadGraph F1 over reports: `radgraph_simple`, `radgraph_partial`, `radgraph_complete`, in [0, 1].

    Args:
        generated: pair_id -> generated report.
        reference: pair_id -> true report, same ids.
        package: radgraph | radeval: whose F1RadGraph runs.
        model: radgraph-xl (what RadEval reports) | radgraph.
        seed: seed of the bootstrap over reports.
        resamples: its draws.

    Raises:
        ImportError: the package is not installed; names the extra.
        RuntimeError: its weights cannot be loaded.
        ValueError: see `paired`; unknown package; it did not score every report.
    """
    said, true = paired(generated, reference)
    modules = {"radgraph": "radgraph", "radeval": "radeval.metrics.radgraph"}
    if package not in modules:
        raise ValueError(f"RadGraph F1 is computed by {' or '.join(modules)}, got package {package!r}")
    scorer = _loaded(package, modules[package], lambda module: module.F1RadGraph(reward_level="all", model_type=model))
    _, levels, *_ = scorer(hyps=said, refs=true)
    empty = np.array([is_empty(report) for report in said])
    scores: dict[str, Estimate] = {}
    for level, values in zip(RADGRAPH_LEVELS, levels, strict=True):
        each = np.where(empty, 0.0, _each(f"{package}: {level}", values, len(said)))
        scores[f"radgraph_{level}"] = bootstrap_mean(each, seed, resamples)
    return scores


def radeval_scores(
    generated: Reports, reference: Reports, metrics: Sequence[str], seed: int, resamples: int
) -> dict[str, Estimate]:
    """Mean over reports of RadEval's scores, called `<its key> (radeval)`; empty reports score what it gives them.

    Args:
        generated: pair_id -> generated report.
        reference: pair_id -> true report, same ids.
        metrics: RadEval's names: bertscore, ratescore, radcliq, srrbert, temporal, green, …
        seed: seed of the bootstrap over reports.
        resamples: its draws.

    Raises:
        ImportError: RadEval is not installed; names the extra.
        RuntimeError: weights cannot be loaded.
        ValueError: see `paired`; a metric has no score a report.
    """
    said, true = paired(generated, reference)
    scorer = _loaded(
        "radeval",
        "radeval",
        lambda module: module.RadEval(metrics=list(metrics), per_sample=True, show_progress=False),
    )
    found: Mapping[str, Any] = scorer(refs=true, hyps=said)
    return {
        f"{key} (radeval)": bootstrap_mean(_each(f"radeval: {key}", values, len(said)), seed, resamples)
        for key, values in found.items()
    }


def ce_table_scores(generated: Path, reference: Path, seed: int, resamples: int) -> dict[str, Estimate]:
    """F1, precision and recall of labels in two CSV files, as R2Gen's compute_ce.py reads them.

    Row i of both files is about the same study. Columns are matched by name (R2Gen takes their order for granted).
    R2Gen's AUROC of labels that are 0 or 1 is left out: it is a function of recall and of the false positive rate.

    Args:
        generated: labels of the generated reports (R2Gen: res_labeled.csv).
        reference: labels of the true ones (gts_labeled.csv).
        seed: seed of the bootstrap over rows.
        resamples: its draws.

    Returns:
        see `label_scores` and `precision_recall`, prefix `ce_table`: the file does not say which labeller wrote it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a cell is no label, or the files differ in columns or rows.
    """
    labels, said = read_label_table(generated)
    true_labels, true = read_label_table(reference)
    if sorted(labels) != sorted(true_labels) or len(said) != len(true):
        raise ValueError(
            f"{generated} ({len(said)} rows of {', '.join(labels)}) and {reference} ({len(true)} rows of "
            f"{', '.join(true_labels)}) must have the same columns and one row a study each"
        )
    said = said[:, [labels.index(label) for label in true_labels]]
    scores = label_scores("ce_table", true, said, true_labels, seed, resamples)
    return scores | precision_recall("ce_table", true, said, seed, resamples)


def read_label_table(path: Path) -> tuple[list[str], Labels]:
    """Label names and labels (N, L) int8 of a CSV file whose first column is the report or an id.

    Cells: 1, 0, -1 (also 1.0, …) and nothing, as CheXpert's labeler, CheXbert and MIMIC-CXR-JPG write them.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a cell is none of them; names row and column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run an outside labeller over the reports first")
    rows = list(csv.reader(io.StringIO(decode_text(path.read_bytes())[0], newline="")))
    rows = [row for row in rows if row]
    if not rows or len(rows[0]) < 2:
        raise ValueError(f"{path} must have a first column (report or id) and a column a label, got {rows[:1]}")
    labels, cells = rows[0][1:], []
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path} row {number} has {len(row)} cells, the header {len(rows[0])}")
        cells.append(
            [_cell(cell, f"{path} row {number}, {label}") for label, cell in zip(labels, row[1:], strict=True)]
        )
    return labels, np.array(cells, dtype=np.int8).reshape(-1, len(labels))


def _cell(cell: object, place: str) -> int:
    """1, 1.0, "1.0", "", NaN, … -> a state."""
    text = str(cell).strip().lower().removesuffix(".0")
    if text not in CELLS:
        raise ValueError(
            f"{place}: {cell!r} is no label: expected 1 (positive), 0 (negative), -1 (uncertain) or nothing"
        )
    return CELLS[text]


def _loaded(package: str, module: str, build: Callable[[Any], Any]) -> Any:
    """What `build` makes of a package's module, with its weights."""
    try:
        imported = import_module(module)
    except ImportError as error:
        how = "" if package == "radeval" else f"; {package} needs transformers below 5, package='radeval' does not"
        raise ImportError(
            f"the package {package} is not installed ({error}): run `MEDIM_EXTRAS=dev,medical,{EXTRA} ./setup`, which "
            f"installs radeval{how}"
        ) from error
    try:
        return build(imported)
    except Exception as error:
        raise RuntimeError(
            f"{package} cannot load its weights ({type(error).__name__}: {error}): it fetches them from the Hugging "
            "Face hub at first use; run it once with a connection, or set HF_HOME to a folder that holds them"
        ) from error


def _each(name: str, values: Any, n: int) -> NDArray[np.float64]:
    """A package's scores (N,), one a report."""
    flat = isinstance(values, list | tuple | np.ndarray) and all(isinstance(value, Real) for value in values)
    if not flat or len(values) != n:
        raise ValueError(f"{name} gives no single score a report ({n} reports): ask for another metric")
    scores = np.array(values, dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"{name} is NaN for {int(np.isnan(scores).sum())} of {n} reports")
    return scores
