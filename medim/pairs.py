"""The image-report pair: its Parquet schema, streaming writer and readers.

A pair's text as the models see it is `"<prompt>: <report>"` (`full_text`); the prompt names the modality and sometimes
region and condition, ends with PROMPT_END and is stripped before any score (`split_prompt`).
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

PROMPT_END = ":"

PAIR_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # file name, or generator and seed
        pa.field("image", pa.binary(), nullable=False),  # PNG, RGB
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("report", pa.string(), nullable=False),
        pa.field("findings", pa.string()),  # JSON {label: state}; null: unknown
        pa.field("scene", pa.string()),  # JSON; null: not drawn by us
        pa.field("masks", pa.binary()),  # encode_masks; null: none
    ]
)


@dataclass(frozen=True)
class Pair:
    """One picture with its report. `image` holds PNG bytes (RGB)."""

    pair_id: str
    study_id: str
    patient_id: str
    dataset: str
    source: str
    image: bytes
    prompt: str
    report: str
    findings: str | None = None
    scene: str | None = None
    masks: bytes | None = None

    @property
    def full_text(self) -> str:
        """Prompt and report as the tokenizer sees them."""
        return full_text(self.prompt, self.report)

    @property
    def states(self) -> dict[str, str] | None:
        """Finding label -> state, or None where unknown."""
        return None if self.findings is None else dict(json.loads(self.findings))


def full_text(prompt: str, report: str) -> str:
    """`"<prompt>: <report>"`.

    Raises:
        ValueError: the prompt holds PROMPT_END.
    """
    if PROMPT_END in prompt:
        raise ValueError(f"a prompt may not hold {PROMPT_END!r}, got {prompt!r}")
    return f"{prompt}{PROMPT_END} {report}".rstrip()


def split_prompt(text: str) -> tuple[str, str]:
    """Text of the models -> (prompt, report); a text without PROMPT_END is all report."""
    head, found, tail = text.partition(PROMPT_END)
    return (head.strip(), tail.strip()) if found else ("", text.strip())


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 -> PNG bytes; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image, "RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """PNG bytes -> (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.uint8)


def encode_masks(masks: Mapping[str, NDArray[np.bool_]]) -> bytes:
    """Label -> (S, S) bool, packed: a JSON head with labels and size, then zlib of the bits."""
    names = sorted(masks)
    size = next(iter(masks.values())).shape[0] if names else 0
    bits = np.packbits(np.stack([masks[name] for name in names])) if names else np.zeros(0, np.uint8)
    head = json.dumps({"labels": names, "size": size}).encode()
    return len(head).to_bytes(4, "big") + head + zlib.compress(bits.tobytes(), 1)


def decode_masks(data: bytes) -> dict[str, NDArray[np.bool_]]:
    """The inverse of `encode_masks`."""
    length = int.from_bytes(data[:4], "big")
    head = json.loads(data[4 : 4 + length])
    names, size = head["labels"], head["size"]
    bits = np.frombuffer(zlib.decompress(data[4 + length :]), np.uint8)
    flat = np.unpackbits(bits, count=len(names) * size * size).astype(bool)
    return dict(zip(names, flat.reshape(len(names), size, size), strict=True)) if names else {}


class TableWriter:
    """Writes rows to one Parquet file in row groups, in constant memory; the file appears whole or not at all."""

    def __init__(self, path: Path, schema: pa.Schema, group_rows: int = 512) -> None:
        self.path, self.schema, self.group_rows = path, schema, group_rows
        self.rows: list[dict[str, Any]] = []
        self.count = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._writer = pq.ParquetWriter(self._partial, self.schema, compression="zstd")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row (keys = the schema's fields; a missing nullable one is null)."""
        self.rows.append(dict(row))
        self.count += 1
        if len(self.rows) >= self.group_rows:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self._writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)


def write_pairs(path: Path, pairs: Iterable[Pair], group_rows: int = 512) -> int:
    """Stream pairs to a Parquet file; returns their number."""
    with TableWriter(path, PAIR_SCHEMA, group_rows) as writer:
        for pair in pairs:
            writer.write(vars(pair))
    return writer.count


def join_tables(parts: Iterable[Path], path: Path, schema: pa.Schema) -> int:
    """Write the rows of several files as one, in constant memory; returns their number.

    The bytes are those of a `TableWriter` that had been given all rows.
    """
    with TableWriter(path, schema) as writer:
        for part in parts:
            for row in iter_rows(part, schema.names):
                writer.write(row)
    return writer.count


def iter_rows(
    path: Path, columns: Sequence[str], batch_rows: int = 256, rows: tuple[int, int] | None = None
) -> Iterator[dict[str, Any]]:
    """Stream rows of a Parquet file in order, in constant memory.

    Args:
        columns: those that are read.
        batch_rows: rows in memory at once.
        rows: (start, stop), all if None; row groups outside are not read.
    """
    file = pq.ParquetFile(path, pre_buffer=False)  # else all row groups are read ahead
    start, stop = rows or (0, file.metadata.num_rows)
    groups, before = _groups(file.metadata, start, stop)
    if groups:
        batches = file.iter_batches(batch_rows, row_groups=groups, columns=list(columns))
        yield from islice((row for batch in batches for row in batch.to_pylist()), start - before, stop - before)


def _groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """Row groups with a row in [start, stop), and how many rows stand before them."""
    firsts = np.cumsum([0, *(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))])
    groups = [n for n in range(metadata.num_row_groups) if firsts[n] < stop and firsts[n + 1] > start]
    return groups, int(firsts[groups[0]]) if groups else 0


def iter_pairs(path: Path, batch_rows: int = 256, rows: tuple[int, int] | None = None) -> Iterator[Pair]:
    """Stream the pairs of a Parquet file in order, in constant memory; see `iter_rows`.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro prepare_data`")
    for row in iter_rows(path, PAIR_SCHEMA.names, batch_rows, rows):
        yield Pair(**row)


def read_pairs(path: Path, limit: int | None = None) -> list[Pair]:
    """The first `limit` pairs (None: all) in memory."""
    pairs: list[Pair] = []
    for pair in iter_pairs(path):
        if limit is not None and len(pairs) >= limit:
            break
        pairs.append(pair)
    return pairs


def load_images(pairs: Iterable[Pair]) -> NDArray[np.uint8]:
    """(N, S, S, 3) uint8 of pairs whose pictures have one size."""
    return np.stack([decode_png(pair.image) for pair in pairs])
