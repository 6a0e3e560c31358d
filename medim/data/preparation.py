"""Writes one dataset's splits, drawn or imported, as Parquet files of pairs in constant memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from medim.data.folder import FolderSource, ImportStats, import_folder
from medim.data.splits import SPLITS, check_patients, drawn_pairs, shared_patients
from medim.pairs import PAIR_SCHEMA, Pair, TableWriter, write_pairs


@dataclass(frozen=True)
class DrawnSource:
    """How many pairs of a drawn dataset (medim/data/__init__.py) each split gets."""

    train: int  # pairs
    val: int
    test: int

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            ValueError: one is negative.
        """
        for split, pairs in vars(self).items():
            if pairs < 0:
                raise ValueError(f"a split has at least 0 pairs, {split} has {pairs}")


Source = DrawnSource | FolderSource


def prepare_dataset(dataset: str, source: Source, size: int, seed: int, folder: Path) -> Mapping[str, int]:
    """Write `folder`/<split>.parquet for every split (and quarantine.csv for imported data); returns pairs per split.

    Drawn splits that are there already (an earlier attempt was stopped) are kept; an import is run anew as a whole.
    Patients that an official split (`split_column`) has in two splits are printed: such a split is taken as it is.

    Raises:
        ValueError: a patient stands in two splits without an official split, or the import refuses its source.
        FileNotFoundError: the folder or the table of an import is missing.
        KeyError: the table of an import lacks a column.
    """
    files = {split: folder / f"{split}.parquet" for split in SPLITS}
    if isinstance(source, DrawnSource):
        counts = _draw(dataset, source, size, seed, files)
    else:
        counts = _import(dataset, source, size, seed, files)
    if isinstance(source, FolderSource) and source.split_column:
        for (first, second), found in shared_patients(files).items():
            print(f"{dataset}: the official split has {len(found)} patients in both {first} and {second}", flush=True)
    else:
        check_patients(dataset, files)
    return counts


def _draw(dataset: str, source: DrawnSource, size: int, seed: int, files: Mapping[str, Path]) -> dict[str, int]:
    counts = {"train": source.train, "val": source.val, "test": source.test}
    for split, path in files.items():
        if path.is_file():
            continue
        pairs = drawn_pairs(dataset, split, seed, counts[split], size)
        write_pairs(path, tqdm(pairs, f"{dataset} {split}", counts[split], unit="pair", disable=None))
    return counts


def _import(dataset: str, source: FolderSource, size: int, seed: int, files: Mapping[str, Path]) -> dict[str, int]:
    with ExitStack() as stack:
        writers = {split: stack.enter_context(TableWriter(path, PAIR_SCHEMA)) for split, path in files.items()}
        bar = stack.enter_context(tqdm(desc=dataset, unit="item", disable=None))

        def write(split: str, pair: Pair) -> None:
            writers[split].write(vars(pair))

        stats = import_folder(dataset, source, size, seed, write, lambda done: bar.update(done - bar.n))
    _report(dataset, stats, next(iter(files.values())).parent / "quarantine.csv")
    return {split: stats.accepted[split] for split in files}


def _report(dataset: str, stats: ImportStats, quarantine: Path) -> None:
    stats.write_quarantine(quarantine)
    print(
        f"{dataset}: {sum(stats.accepted.values())} pairs taken {dict(stats.accepted)}, {len(stats.quarantined)} items "
        f"in {quarantine.name}, {stats.cp1252} reports read as cp1252",
        flush=True,
    )
