"""Splits of drawn data, and the law that no patient stands in two splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count as numbers
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from medim.data import get_domain
from medim.pairs import Pair

SPLITS = ("train", "val", "test")
FIRST_PATIENT = {"train": 0, "val": 10_000_000, "test": 20_000_000}


def drawn_pairs(dataset: str, split: str, seed: int, count: int, size: int) -> Iterator[Pair]:
    """The first `count` pairs of a drawn dataset's split, patient by patient, at `size` pixels."""
    domain = get_domain(dataset)
    patients = numbers(FIRST_PATIENT[split])
    return islice((pair for patient in patients for pair in domain.pairs(seed, patient, size)), count)


def shared_patients(files: Mapping[str, Path]) -> dict[tuple[str, str], set[str]]:
    """Patients that two splits of one dataset share: (split, split) -> patient ids; empty when none does."""
    patients = {
        split: set(pq.read_table(path, columns=["patient_id"])["patient_id"].to_pylist())
        for split, path in files.items()
    }
    names = sorted(patients)
    overlaps = {(a, b): patients[a] & patients[b] for number, a in enumerate(names) for b in names[number + 1 :]}
    return {pair: found for pair, found in overlaps.items() if found}


def check_patients(dataset: str, files: Mapping[str, Path]) -> None:
    """Law 6: refuse a dataset whose splits share patients.

    Raises:
        ValueError: names the splits and the first shared patients.
    """
    for (first, second), found in shared_patients(files).items():
        raise ValueError(
            f"{dataset}: {len(found)} patients stand in both {first} and {second} (first: {sorted(found)[:3]}). "
            f"Split by patient, or name the official split in params.yaml:prepare_data.datasets.{dataset}.split_column"
        )
