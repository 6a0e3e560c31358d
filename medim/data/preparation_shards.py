"""Preparation by shards: what takes its time, drawing and decoding, for any number of workers.

A drawn split is a shard; the pictures of an import are shards of rows of its list of items. Each file is what one
process would have made, so `medim.data.preparation.prepare_dataset` finds drawn splits in place and is handed the
decoded pictures in order, and its own outputs are the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from medim.data.folder import (
    Decoded,
    FolderSource,
    ImportStats,
    checked_items,
    decode_picture,
    refusals,
    split_of_patients,
)
from medim.data.preparation import DrawnSource
from medim.data.splits import drawn_pairs
from medim.pairs import TableWriter, iter_rows, write_pairs

ITEM_SCHEMA = pa.schema([pa.field("picture", pa.string(), nullable=False)])  # a file's path
PICTURE_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary()),  # PNG; null: it cannot be used
        pa.field("reason", pa.string(), nullable=False),  # why
    ]
)


def drawn_jobs(
    dataset: str, source: DrawnSource, marker: Path, folder: Path
) -> list[tuple[Path, Path, Mapping[str, Any]]]:
    """(marker, file, arguments of `make_drawn`'s function) of every split.

    Args:
        marker: the file that stands for the source, since drawing reads none.
        folder: of the splits, as for `prepare_dataset`.
    """
    return [
        (marker, folder / f"{split}.parquet", {"dataset": dataset, "split": split, "count": count})
        for split, count in vars(source).items()
    ]


def make_drawn(*, size: int, seed: int) -> Callable[..., Mapping[str, int]]:
    """What a worker does to a drawn split."""

    def draw(_source: Path, target: Path, *, dataset: str, split: str, count: int) -> Mapping[str, int]:
        return {"pairs": write_pairs(target, drawn_pairs(dataset, split, seed, count, size))}

    return draw


def write_items(dataset: str, source: FolderSource, seed: int, path: Path) -> int:
    """Write the pictures that an import decodes, in order; returns their number.

    Raises:
        ValueError, FileNotFoundError, KeyError: the import would refuse its source, see `import_folder`.
    """
    items = checked_items(dataset, source, ImportStats())
    split_of_patients(dataset, source, items, seed)
    with TableWriter(path, ITEM_SCHEMA) as writer:
        for item, reason in zip(items, refusals(items), strict=True):
            if not reason:
                writer.write({"picture": str(item.image)})
    return writer.count


def make_pictures(*, size: int, background: str, fit: str) -> Callable[..., Mapping[str, int]]:
    """What a worker does to rows of a list of items: PICTURE_SCHEMA."""

    def decode(source: Path, target: Path, *, start: int, stop: int) -> Mapping[str, int]:
        unusable = 0
        with TableWriter(target, PICTURE_SCHEMA) as writer:
            for row in iter_rows(source, ITEM_SCHEMA.names, rows=(start, stop)):
                image, reason = decode_picture(Path(row["picture"]), size, background, fit)
                unusable += image is None
                writer.write({"image": image, "reason": reason})
        return {"pictures": writer.count, "unusable": unusable}

    return decode


def iter_pictures(parts: Iterable[Path]) -> Iterator[Decoded]:
    """What the shards say of each item, in order."""
    for part in parts:
        for row in iter_rows(part, PICTURE_SCHEMA.names):
            yield row["image"], row["reason"]
