"""The prompts of synthetic pairs: modality x region x condition, read from parameters, and how often each is asked.

A prompt begins the report of a pair whose other tokens are all [MASK] (paper, "Downstream Task"). It helps only if the
generator has met it in training, so every prompt is held against those that the domain's grammar makes, or, for
imported data, against the prompts of the training pairs.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from medim.data import get_domain, is_drawn
from medim.data.domain import labels_of
from medim.pairs import PROMPT_END

EQUAL, TRAINING = "equal", "training"
FREQUENCIES = (EQUAL, TRAINING)
GRAMMAR_PATIENTS = 200  # patients whose studies show what a domain calls its regions
NAMES_SOMETHING = 0.0  # of a scene's `named`: the prompt names a finding if there is one


@dataclass(frozen=True)
class PromptGroup:
    """Regions that share their conditions; "" stands for none named."""

    regions: tuple[str, ...]
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class PromptWords:
    """The words of one dataset's prompts: `<modality><before_region><region>, <condition>`."""

    modality: str  # "chest x-ray"
    before_region: str  # ", " or " of the "
    groups: tuple[PromptGroup, ...]


def prompts_of(words: PromptWords) -> list[str]:
    """Every region with every condition of its group, in order.

    Raises:
        ValueError: there is none, one stands twice, or one holds PROMPT_END.
    """
    found = [
        words.modality + (words.before_region + region if region else "") + (f", {condition}" if condition else "")
        for group in words.groups
        for region, condition in product(group.regions, group.conditions)
    ]
    twice = sorted(prompt for prompt, times in Counter(found).items() if times > 1)
    broken = [prompt for prompt in found if PROMPT_END in prompt]
    if not found or twice or broken:
        raise ValueError(
            f"the prompts of {words.modality!r} must be one or more, each once and without {PROMPT_END!r}; "
            f"twice: {twice}, with {PROMPT_END!r}: {broken} (params.yaml:synthesize_pairs.prompts)"
        )
    return found


def training_prompts(train: Path) -> Counter[str]:
    """How often each prompt begins a training pair; the file is streamed.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
    """
    if not train.is_file():
        raise FileNotFoundError(f"{train} is missing: run `dvc repro prepare_data`")
    found: Counter[str] = Counter()
    for batch in pq.ParquetFile(train).iter_batches(columns=["prompt"]):
        found.update(batch.column("prompt").to_pylist())
    return found


def grammar_prompts(dataset: str) -> set[str]:
    """Every prompt that a drawn domain makes: of its studies as they are, and of each with any one finding named.

    Raises:
        KeyError: no such domain.
    """
    domain = get_domain(dataset)
    alone = [{label: {"state": "present", "strength": 1.0}} for label in labels_of(domain.findings)]
    found = set()
    for patient in range(GRAMMAR_PATIENTS):
        for scene in domain.studies(0, patient):
            found.add(domain.prompt(scene))
            found |= {domain.prompt({**scene, "named": NAMES_SOMETHING, "findings": one}) for one in ({}, *alone)}
    return found


def check_prompts(dataset: str, prompts: Sequence[str], training: Collection[str]) -> None:
    """Refuse prompts that no pair of the dataset begins with.

    Args:
        dataset: whose prompts they are.
        prompts: see `prompts_of`.
        training: the prompts of its training pairs.

    Raises:
        ValueError: names the first such prompt and the nearest one that there is.
    """
    known = grammar_prompts(dataset) if is_drawn(dataset) else set(training)
    for prompt in prompts:
        if prompt not in known:
            near = difflib.get_close_matches(prompt, sorted(known), n=1, cutoff=0.0)
            raise ValueError(
                f"no pair of {dataset} begins with {prompt!r}, the nearest prompt is {', '.join(map(repr, near))}: "
                f"change params.yaml:synthesize_pairs.prompts.{dataset}"
            )


def asked_prompts(prompts: Sequence[str], frequency: str, training: Mapping[str, int], count: int) -> list[str]:
    """The prompt of each of `count` pairs, in an order of which every beginning has the wanted frequencies.

    The next pair goes to the prompt that is furthest behind its share (the first of equals), so none is ever a whole
    pair ahead of it; equal shares take turns.

    Args:
        prompts: different prompts.
        frequency: `equal`, or `training`: in proportion to `training`.
        training: prompt -> number of training pairs.
        count: pairs.

    Raises:
        ValueError: an unknown frequency, or none of the prompts begins a training pair.
    """
    if frequency not in FREQUENCIES:
        raise ValueError(
            f"frequency must be {' or '.join(FREQUENCIES)}, got {frequency!r} (params.yaml:synthesize_pairs.settings)"
        )
    weights = np.array([1 if frequency == EQUAL else training.get(prompt, 0) for prompt in prompts], dtype=np.float64)
    if not weights.sum():
        raise ValueError(f"none of {len(prompts)} prompts begins a training pair: set frequency to {EQUAL}")
    share, given, out = weights / weights.sum(), np.zeros(len(prompts)), []
    for number in range(count):
        behind = np.where(share > 0, share * (number + 1) - given, -np.inf)
        chosen = int(np.argmax(behind.round(9)))  # equal shares are equal whatever their rounding
        given[chosen] += 1
        out.append(prompts[chosen])
    return out
