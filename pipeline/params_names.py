"""Holds the sections of params.yaml against each other: names that one section uses and another one defines, and least
values. Read before any stage runs, so that a wrong name in the last stage does not wait for the trainings before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.params_file import ParamsError, nearest
from pipeline.paths import SIDE

REAL = "real"  # the test pairs, where a study of readers names models

# section.key -> least value
LEAST = {
    "train_vqgan.val_pairs": 1, "evaluate_vqgan.columns": 1, "evaluate_vqgan.zoom": 1,
    "evaluate_vqgan.settings.resamples": 2, "evaluate_vqgan.settings.set_resamples": 2,
    "filter_reports.chunk": 1, "tokenize_pairs.vocabulary": 258, "tokenize_pairs.length": 8, "tokenize_pairs.batch": 1,
    "pretrain_backbone.val_pairs": 1, "pretrain_towers.training.val_pairs": 2,
    "train_medim.settings.val_pairs": 1,
    "synthesize_pairs.card.columns": 1, "synthesize_pairs.card.zoom": 1, "synthesize_pairs.card.resamples": 2,
    "mix_pairs.pairs": 1, "train_downstream.test_pairs": 1, "train_downstream.chunk": 1,
    "evaluate_downstream.resamples": 2,
    "generate.pairs": 1, "generate.joint": 0, "generate.chunk": 1, "generate.side.pairs": 1, "generate.side.masks": 1,
    "evaluate.settings.resamples": 2, "evaluate.settings.quality.resamples": 2, "evaluate.sheet_columns": 1,
    "evaluate.sheet_zoom": 1, "record_tables.figures.prompts": 1, "record_tables.figures.cases": 1,
    "record_tables.figures.columns": 1, "record_tables.figures.side": 32, "record_tables.reader_study.resamples": 2,
    "compare_report_errors.pairs": 2, "compare_report_errors.resamples": 2,
}  # fmt: skip


def check_sections_together(sections: Mapping[str, Any], path: object) -> None:
    """Sections as their dataclasses, by name; those of a pipeline that has other stages are left out.

    Raises:
        ParamsError: names key, value and what is possible.
    """
    generate = sections.get("generate")
    if generate is not None and SIDE in generate.datasets:
        raise ParamsError(
            f"{path}:generate.datasets: a dataset cannot be called {SIDE!r}, a folder of generated/<model>"
        )
    for key, names, known, source in _uses(sections):
        for name in names:
            if name not in known:
                raise ParamsError(
                    f"{path}:{key}: {name!r} is not in {source} ({', '.join(known)}){nearest(name, known)}"
                )
    for key, least in LEAST.items():
        section, *rest = key.split(".")
        value = sections.get(section)
        for part in rest if value is not None else ():
            value = getattr(value, part)
        if value is not None and value < least:
            raise ParamsError(f"{path}:{key} must be at least {least}, got {value}")


def _uses(sections: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str], list[str], str]]:
    """(key, the names it holds, names that exist, where those stand)."""
    if not {"prepare_data", "tokenize_pairs", "generate", "evaluate"} <= set(sections):
        return
    prepared, tokens = list(sections["prepare_data"].datasets), list(sections["tokenize_pairs"].datasets)
    for stage in ("train_vqgan", "evaluate_vqgan", "tokenize_pairs", "train_baseline", "generate", "evaluate"):
        yield f"{stage}.datasets", sections[stage].datasets, prepared, "prepare_data.datasets"
    yield from _pretraining_uses(sections["train_baseline"], prepared)
    yield "train_medim.datasets", sections["train_medim"].datasets, tokens, "tokenize_pairs.datasets"
    yield "pretrain_backbone.datasets", sections["pretrain_backbone"].datasets, tokens, "tokenize_pairs.datasets"
    yield "pretrain_towers.datasets", sections["pretrain_towers"].datasets, tokens, "tokenize_pairs.datasets"
    generate, evaluate = sections["generate"], sections["evaluate"]
    yield "filter_reports.datasets", sections["filter_reports"].datasets, list(evaluate.datasets), "evaluate.datasets"
    yield "evaluate.datasets", evaluate.datasets.values(), prepared, "prepare_data.datasets"
    yield "evaluate.datasets", evaluate.datasets, list(generate.datasets), "generate.datasets"
    yield "generate.side.datasets", generate.side.datasets, list(generate.datasets), "generate.datasets"
    yield "evaluate.settings.ce_rules", evaluate.settings.ce_rules, list(evaluate.datasets), "evaluate.datasets"
    trained = [*sections["train_medim"].variants, *sections["train_baseline"].methods]
    yield "generate.models", generate.models, trained, "train_medim.variants and train_baseline.methods"
    changed = list(generate.sampler_of_model)
    yield (
        "generate.models",
        generate.models,
        changed,
        "generate.sampler_of_model ({} changes nothing)",
    )
    yield "evaluate.models", evaluate.models, list(generate.models), "generate.models"
    yield from _downstream_uses(sections, trained, prepared)
    wrong = sections["compare_report_errors"]
    yield "compare_report_errors.datasets", wrong.datasets, prepared, "prepare_data.datasets"
    study = sections["prepare_reader_study"]
    yield "prepare_reader_study.models", study.models, [*generate.models, REAL], "generate.models and real"
    yield "prepare_reader_study.study.datasets", study.study.datasets, prepared, "prepare_data.datasets"
    for key in ("chest", "pathology", "ood"):
        name = getattr(sections["record_tables"], key)
        if name is not None:
            yield f"record_tables.{key}", [name], list(evaluate.datasets), "evaluate.datasets"
    record = sections["record_tables"]
    shown = [name for name in (record.chest, record.pathology) if name is not None]
    for goal in record.mission or ():
        yield "record_tables.mission", goal.datasets, shown, "record_tables.chest and record_tables.pathology"


def _pretraining_uses(baselines: Any, prepared: list[str]) -> Iterator[tuple[str, Iterable[str], list[str], str]]:
    """As `_uses`, of the first trainings of the methods that are trained."""
    for method in baselines.methods:
        pretraining = baselines.settings.get(method, {}).get("pretraining")
        if pretraining is not None:
            key = f"train_baseline.settings.{method}.pretraining.datasets"
            yield key, pretraining["datasets"], prepared, "prepare_data.datasets"


def _downstream_uses(
    sections: Mapping[str, Any], trained: list[str], prepared: list[str]
) -> Iterator[tuple[str, Iterable[str], list[str], str]]:
    """As `_uses`, of the synthetic pairs and of what is trained on them."""
    if not {"synthesize_pairs", "mix_pairs", "train_downstream"} <= set(sections):
        return
    synthesis, mixed, study = (sections[name] for name in ("synthesize_pairs", "mix_pairs", "train_downstream"))
    yield (
        "synthesize_pairs.generators",
        synthesis.generators,
        trained,
        "train_medim.variants and train_baseline.methods",
    )
    changed = list(sections["generate"].sampler_of_model)
    yield "synthesize_pairs.generators", synthesis.generators, changed, "generate.sampler_of_model"
    yield "synthesize_pairs.prompts", synthesis.prompts, prepared, "prepare_data.datasets"
    methods = list(sections["train_baseline"].methods)
    yield "train_downstream.methods", study.methods, methods, "train_baseline.methods"
    yield (
        "train_downstream.methods",
        study.methods,
        list(study.changes),
        "train_downstream.changes ({} changes nothing)",
    )
    yield "train_downstream.arms", study.arms, list(mixed.mixes), "mix_pairs.mixes"
    yield "mix_pairs.datasets", mixed.datasets, list(synthesis.prompts), "synthesize_pairs.prompts"
    needed = dict.fromkeys(name for arm in study.arms if arm in mixed.mixes for name in mixed.mixes[arm].generators)
    yield "mix_pairs.mixes", needed, list(synthesis.generators), "synthesize_pairs.generators"
