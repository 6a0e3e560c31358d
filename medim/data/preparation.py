"""Writes one dataset's splits, drawn or imported, as Parquet files of pairs in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from medim.data.folder import Decoded, FolderSource, ImportStats, import_folder
from medim.data.iu_xray import StudySource, import_studies
from medim.data.pathgen import PathGenSource, import_pathgen
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


ImportedSource = FolderSource | StudySource | PathGenSource
Source = DrawnSource | FolderSource | StudySource | PathGenSource  # params.yaml tells them apart by their keys


def prepare_dataset(
    dataset: str, source: Source, size: int, seed: int, folder: Path, pictures: Iterator[Decoded] | None = None
) -> Mapping[str, int]:
    """Write `folder`/<split>.parquet for every split (and quarantine.csv for imported data); returns pairs per split.

    Drawn splits that are there already (an earlier attempt was stopped) are kept; an import is run anew as a whole, but
    for slides that an earlier attempt has cut. Patients that an official split has in two splits are printed: such a
    split is taken as it is. `pictures`: see `import_folder`; other sources decode their own.

    Raises:
        ValueError: a patient stands in two splits without an official split, or the import refuses its source.
        FileNotFoundError: the folder or the table of an import is missing.
        KeyError: the table of an import lacks a column.
        ImportError: the import needs a package that is not installed.
    """
    files = {split: folder / f"{split}.parquet" for split in SPLITS}
    if isinstance(source, DrawnSource):
        counts = _draw(dataset, source, size, seed, files)
    else:
        counts = _import(dataset, source, size, seed, files, pictures)
    if not isinstance(source, DrawnSource) and is_official(source):
        for (first, second), found in shared_patients(files).items():
            print(f"{dataset}: the official split has {len(found)} patients in both {first} and {second}", flush=True)
    else:
        check_patients(dataset, files)
    return counts


def is_official(source: ImportedSource) -> bool:
    """Whether a source asks by name for a split that may have a patient in two splits."""
    return bool(source.split_column) if isinstance(source, FolderSource) else source.overlap == "official"


def _draw(dataset: str, source: DrawnSource, size: int, seed: int, files: Mapping[str, Path]) -> dict[str, int]:
    counts = {"train": source.train, "val": source.val, "test": source.test}
    for split, path in files.items():
        if path.is_file():
            continue
        pairs = drawn_pairs(dataset, split, seed, counts[split], size)
        write_pairs(path, tqdm(pairs, f"{dataset} {split}", counts[split], unit="pair", disable=None))
    return counts


def _import(
    dataset: str, source: ImportedSource, size: int, seed: int, files: Mapping[str, Path],
    pictures: Iterator[Decoded] | None,
) -> dict[str, int]:  # fmt: skip
    folder = next(iter(files.values())).parent
    with ExitStack() as stack:
        writers = {split: stack.enter_context(TableWriter(path, PAIR_SCHEMA)) for split, path in files.items()}
        bar = stack.enter_context(tqdm(desc=dataset, unit="item", disable=None))

        def write(split: str, pair: Pair) -> None:
            writers[split].write(vars(pair))

        stats = _read(dataset, source, size, seed, write, lambda done: bar.update(done - bar.n), folder, pictures)
    _report(dataset, stats, folder / "quarantine.csv")
    return {split: stats.accepted[split] for split in files}


def _read(
    dataset: str, source: ImportedSource, size: int, seed: int, write: Callable[[str, Pair], None],
    progress: Callable[[int], None], folder: Path, pictures: Iterator[Decoded] | None,
) -> ImportStats:  # fmt: skip
    """Run the importer of a source."""
    if isinstance(source, FolderSource):
        return import_folder(dataset, source, size, seed, write, progress, pictures)
    if isinstance(source, StudySource):
        return import_studies(dataset, source, size, seed, write, progress)
    return import_pathgen(dataset, source, size, seed, write, progress, folder / "slides")


def _report(dataset: str, stats: ImportStats, quarantine: Path) -> None:
    stats.write_quarantine(quarantine)
    print(
        f"{dataset}: {sum(stats.accepted.values())} pairs taken {dict(stats.accepted)}, {len(stats.quarantined)} items "
        f"in {quarantine.name}, {stats.cp1252} reports read as cp1252",
        flush=True,
    )
