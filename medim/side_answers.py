"""Asks a system how well a report fits its picture, as it is and with left and right exchanged.

    s(report) = log p(report | picture) - log p(report)

All four terms of a pair share their maskings (medim.likelihood). Systems without probabilities have no such scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from medim.generation import part_file, sample_seed
from medim.metrics.sides import exchange_sides
from medim.pairs import Pair, TableWriter, load_images
from medim.systems import ReportLikelihood, System

TASK = "side"  # of the seeds, and of the metric keys

SIDE_SCHEMA = pa.schema(
    [
        pa.field("row", pa.string(), nullable=False),  # table row
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        # All of what follows is null where exchanging sides changes nothing that the report says.
        pa.field("exchanged", pa.string()),  # "<prompt>: <report>" with left and right exchanged
        pa.field("s_true", pa.float64()),  # nats, as all below
        pa.field("s_exchanged", pa.float64()),
        pa.field("true_given_picture", pa.float64()),  # log p
        pa.field("true_alone", pa.float64()),
        pa.field("exchanged_given_picture", pa.float64()),
        pa.field("exchanged_alone", pa.float64()),
    ]
)


@dataclass(frozen=True)
class SideSettings:
    """params.yaml:generate.side."""

    datasets: tuple[str, ...]  # datasets that are asked about; none: the question is not asked
    pairs: int  # test pairs a dataset at most
    masks: int  # maskings K behind each log p


@dataclass(frozen=True)
class SideScore:
    """One pair's scores in nats, both None where exchanging sides changes nothing that the report says."""

    row: str
    dataset: str
    pair_id: str
    s_true: float | None
    s_exchanged: float | None


def score_sides(
    system: ReportLikelihood, dataset: str, pairs: Sequence[Pair], seed: int, masks: int, chunk: int, work: Path,
    out: Path,
) -> int:  # fmt: skip
    """Write `out` (SIDE_SCHEMA) with a row for every pair; returns their number.

    Args:
        chunk: pairs a part and sequences a pass; each finished part is a file in `work` and read back after a restart.
        work: kept between attempts.
    """
    with (
        TableWriter(out, SIDE_SCHEMA) as writer,
        tqdm(total=len(pairs), desc=f"{TASK} {dataset}", unit="pair", disable=None) as bar,
    ):
        for start in range(0, len(pairs), chunk):
            some = pairs[start : start + chunk]
            part = part_file(work, dataset, TASK, start, start + len(some))
            if not part.is_file():
                score_part(system, dataset, some, start, seed, masks, chunk, part)
            for row in pq.read_table(part).to_pylist():
                writer.write(row)
            bar.update(len(some))
    return writer.count


def score_part(
    system: ReportLikelihood, dataset: str, pairs: Sequence[Pair], start: int, seed: int, masks: int, rows: int,
    part: Path,
) -> int:  # fmt: skip
    """Write `part` (SIDE_SCHEMA), the scores of one chunk whose first pair is number `start`; their number.

    Args:
        rows: sequences a pass.
    """
    seeds = [sample_seed(seed, TASK, dataset, start + n) for n in range(len(pairs))]
    with TableWriter(part, SIDE_SCHEMA) as writer:
        for row in _scored(system, dataset, pairs, seeds, masks, rows):
            writer.write(row)
    return writer.count


def answer_sides(
    system: System, pairs: Mapping[str, Sequence[Pair]], seed: int, masks: int, chunk: int, work: Path, folder: Path
) -> int:
    """Write `folder`/<dataset>.parquet for every dataset, see `score_sides`; returns the number of rows.

    A system without probabilities writes nothing.
    """
    if not isinstance(system, ReportLikelihood):
        return 0
    return sum(
        score_sides(system, name, of_one, seed, masks, chunk, work, folder / f"{name}.parquet")
        for name, of_one in pairs.items()
    )


def says_sides(pair: Pair) -> bool:
    """Whether exchanging left and right makes the report say something else.

    Of a drawn pair the findings tell: a report of the same on both sides stays true. Of others the words.
    """
    findings = pair.states
    if findings and {exchange_sides(label): state for label, state in findings.items()} == findings:
        return False
    return exchange_sides(pair.report) != pair.report


def _scored(
    system: ReportLikelihood, dataset: str, pairs: Sequence[Pair], seeds: Sequence[int], masks: int, rows: int
) -> Iterator[dict[str, Any]]:
    """Rows of SIDE_SCHEMA in the order of the pairs."""
    sided = [i for i, pair in enumerate(pairs) if says_sides(pair)]
    terms: dict[int, dict[str, Any]] = {}
    if sided:
        kept, own = [pairs[i] for i in sided], [seeds[i] for i in sided]
        texts, images = [pair.full_text for pair in kept], load_images(kept)
        others = [exchange_sides(text) for text in texts]
        log_p = {
            f"{name}_{state}": system.report_log_p(said, shown, own, masks, rows).tolist()
            for name, said in (("true", texts), ("exchanged", others))
            for state, shown in (("given_picture", images), ("alone", None))
        }
        for place, i in enumerate(sided):
            found = {name: values[place] for name, values in log_p.items()}
            s = {f"s_{name}": found[f"{name}_given_picture"] - found[f"{name}_alone"] for name in ("true", "exchanged")}
            terms[i] = {"exchanged": others[place], **s, **found}
    for i, (pair, seed) in enumerate(zip(pairs, seeds, strict=True)):
        base = {"row": system.row, "dataset": dataset, "pair_id": pair.pair_id, "seed": seed}
        yield base | terms.get(i, {})


def read_sides(path: Path) -> list[SideScore]:
    """All scores of one file.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro generate`")
    columns = ["row", "dataset", "pair_id", "s_true", "s_exchanged"]
    return [SideScore(**row) for row in pq.read_table(path, columns=columns).to_pylist()]
