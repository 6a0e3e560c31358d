"""Keeps the reports that a judge finds best: the filter behind the 5,000 ground-truth reports of PathGen's test set.

The paper chooses them by Qwen2-VL's score of picture and report, and lets the same Qwen2-VL judge how well
generated pairs agree: the judge has picked the reports that it likes. That circle is written into every output
(`circularity`), with the judge's name, the score and the rank of each kept pair; nothing else of a pair changes.

Streams over Parquet: the best n scores are held in memory, pairs one row group at a time. The same scores give the same
pairs; equal scores are ordered by pair id.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medim.evaluation import Reference
from medim.metrics.alignment import Judge, PhantomJudge
from medim.metrics.qwen_judge import QwenSettings, load_qwen_judge
from medim.pairs import PAIR_SCHEMA, Pair, TableWriter, iter_pairs, load_images

CIRCULARITY = (
    "These reports were chosen by {judge}'s score of each pair. Any score that {judge} gives to systems on them is "
    "circular: it measures agreement with a judge on the pairs which that judge likes. The paper does so with "
    "Qwen2-VL; compare systems here by other metrics, or by another judge."
)
MANIFEST = "kept.json"  # of a folder of filtered files: dataset -> `Kept`
METADATA = b"report_filter"  # key of the JSON in the Parquet file's own metadata
FILTERED_SCHEMA = pa.schema(
    [
        *PAIR_SCHEMA,
        pa.field("judge", pa.string(), nullable=False),
        pa.field("judge_score", pa.float64(), nullable=False),
        pa.field("judge_rank", pa.int64(), nullable=False),  # 1 = best
    ]
)

PHANTOM_JUDGE = "phantom judge"
NamedJudge = tuple[str, Judge]  # its name, and who scores


@dataclass(frozen=True)
class ReportFilter:
    """What params.yaml says of the filter."""

    judge: str  # name of who gave the scores, e.g. "Qwen2-VL-7B-Instruct" or "phantom judge"
    keep: int  # pairs; the paper: 5000

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: the judge has no name, or nothing is kept.
        """
        if not self.judge.strip() or self.keep < 1:
            raise ValueError(f"a report filter needs a judge's name and keep >= 1, got {self.judge!r}, {self.keep}")


@dataclass(frozen=True)
class Kept:
    """What a filter did; also the JSON in the output's metadata and beside it."""

    judge: str
    keep: int
    judged: int  # pairs that had a score
    least: float  # lowest score that was kept
    tied_out: int  # pairs with that score that were left out because of their id
    source: str  # name of the pairs' file
    source_sha256: str
    circularity: str


def judged_scores(pairs: Path, judge: Judge, chunk: int) -> Iterator[tuple[str, float]]:
    """(pair id, score) of every pair of a Parquet file, `chunk` pictures at once.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the judge gave another number of scores than it was given pairs.
    """
    for group in _chunks(iter_pairs(pairs), chunk):
        scores = judge.scores(load_images(group), [pair.report for pair in group])
        for pair, score in zip(group, scores.tolist(), strict=True):
            yield pair.pair_id, float(score)


def _chunks(pairs: Iterable[Pair], size: int) -> Iterator[tuple[Pair, ...]]:
    stream = iter(pairs)
    while group := tuple(islice(stream, size)):
        yield group


@dataclass(frozen=True)
class _Scored:
    """A scored pair; the worse of two is the smaller: lower score, then later id."""

    score: float
    pair_id: str

    def __lt__(self, other: _Scored) -> bool:
        return (self.score, other.pair_id) < (other.score, self.pair_id)


def best_pairs(scores: Iterable[tuple[str, float]], keep: int) -> tuple[dict[str, tuple[int, float]], int, int]:
    """The `keep` best of a stream of (pair id, score): pair id -> (rank, score); how many were judged and tied out.

    Raises:
        ValueError: fewer than `keep` scores, a score outside [0, 1] or NaN, or an id that stands twice among the best.
    """
    judged, tied_out, best = 0, 0, list[_Scored]()  # a heap, the worst first
    for pair_id, score in scores:
        if not 0 <= score <= 1:  # True for NaN
            raise ValueError(f"the judge's score of pair {pair_id} is {score}: expected a number in [0, 1]")
        judged += 1
        if len(best) < keep:
            heapq.heappush(best, _Scored(score, pair_id))
            continue
        least = best[0].score
        left_out = heapq.heappushpop(best, _Scored(score, pair_id))
        if best[0].score > least:
            tied_out = 0
        tied_out += left_out.score == best[0].score
    if judged < keep:
        raise ValueError(f"{judged} pairs were judged, {keep} are to be kept: lower keep, or judge more pairs")
    ranked = {one.pair_id: (rank, one.score) for rank, one in enumerate(sorted(best, reverse=True), start=1)}
    if len(ranked) < keep:
        raise ValueError(f"{keep - len(ranked)} of the {keep} best pair ids stand twice: every pair has one score")
    return ranked, judged, tied_out


def judge_of(settings: QwenSettings | None, reference: Reference) -> NamedJudge:
    """A judge and its name: Qwen2-VL by its strict protocol, or of drawn pairs what report and picture agree in.

    Raises:
        FileNotFoundError: see `load_qwen_judge`.
        ValueError: the same, or there is no judge for real pairs.
    """
    if settings is not None:
        return settings.name, load_qwen_judge(settings, next(reference.reader.parameters()).device)
    if reference.domain is None:
        raise ValueError(
            f"{reference.dataset} is not drawn, so the phantom judge cannot read its reports: name the folder of "
            f"Qwen2-VL (params.yaml:filter_reports.judge)"
        )
    return PHANTOM_JUDGE, PhantomJudge(reference.domain.grammar, reference.read_images, reference.labels)


def filter_reports(pairs: Path, scores: Iterable[tuple[str, float]], settings: ReportFilter, out: Path) -> Kept:
    """Write the best pairs of `pairs` to `out`, in their old order, with judge, score and rank; `out`.json says how.

    `out` is read by everything that reads pairs (`iter_pairs`): the further columns stand behind those of a pair.

    Args:
        pairs: Parquet file of pairs.
        scores: (pair id, score in [0, 1]) of every pair, in any order; see `judged_scores`, `read_scores`.
        settings: judge's name and how many are kept.
        out: Parquet file to write.

    Raises:
        FileNotFoundError: `pairs` is missing.
        ValueError: see `best_pairs`; or the scores are not of these pairs.
    """
    ranked, judged, tied_out = best_pairs(scores, settings.keep)
    total = _rows(pairs)
    if judged != total:
        raise ValueError(f"{pairs} holds {total} pairs and {judged} scores were given: every pair needs one")
    kept = Kept(
        settings.judge, settings.keep, judged, min(score for _, score in ranked.values()), tied_out, pairs.name,
        _sha256(pairs), CIRCULARITY.format(judge=settings.judge),
    )  # fmt: skip
    text = json.dumps(vars(kept), indent=1, sort_keys=True)
    schema = FILTERED_SCHEMA.with_metadata({METADATA: text.encode()})
    with TableWriter(out, schema) as writer:
        for pair in iter_pairs(pairs):
            if pair.pair_id in ranked:
                rank, score = ranked[pair.pair_id]
                writer.write(vars(pair) | {"judge": settings.judge, "judge_score": score, "judge_rank": rank})
        if writer.count != settings.keep:
            raise ValueError(
                f"{settings.keep - writer.count} of the best pairs are not in {pairs}: scores of other pairs"
            )
    out.with_name(out.name + ".json").write_text(text + "\n", encoding="utf-8")
    return kept


def read_kept(path: Path) -> Kept:
    """What a filtered file's own metadata say.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it was not written by `filter_reports`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write it with medim.report_filter.filter_reports")
    metadata: Mapping[bytes, bytes] = pq.read_schema(path).metadata or {}
    if METADATA not in metadata:
        raise ValueError(f"{path} was not written by the report filter: it does not say who chose its reports")
    content: dict[str, Any] = json.loads(metadata[METADATA])
    return Kept(**content)


def write_manifest(kept: Mapping[str, Kept], folder: Path) -> None:
    """Say beside the filtered files, `<dataset>.parquet`, which there are; written where there are none too."""
    page = {name: vars(one) for name, one in sorted(kept.items())}
    (folder / MANIFEST).write_text(json.dumps(page, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Kept]:
    """Dataset -> how its reports were chosen, of a folder of filtered files.

    Raises:
        FileNotFoundError: the stage has not run.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro filter_reports`")
    return {name: Kept(**content) for name, content in json.loads(path.read_text(encoding="utf-8")).items()}


def kept_ids(folder: Path) -> dict[str, frozenset[str]]:
    """Dataset -> ids of the pairs whose reports were kept; datasets of which all count are not in it.

    Raises:
        FileNotFoundError: the stage has not run, or a file of it is missing.
    """
    return {
        name: frozenset(pair.pair_id for pair in iter_pairs(folder / f"{name}.parquet"))
        for name in read_manifest(folder)
    }


def filter_notes(folder: Path) -> list[str]:
    """What a table must say about the reports that its answers were held against; nothing where all count.

    Raises:
        FileNotFoundError: see `read_manifest`.
    """
    return [
        f"{name}, image to report: held against {one.keep} of {one.judged} test reports. {one.circularity}"
        for name, one in read_manifest(folder).items()
    ]


def read_scores(path: Path) -> Iterator[tuple[str, float]]:
    """(pair id, score) of a Parquet file with the columns pair_id and score, as a stream.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"scores {path} are missing: judge the pairs first (medim.report_filter.judged_scores)")
    file = pq.ParquetFile(path)
    missing = {"pair_id", "score"} - set(file.schema_arrow.names)
    if missing:
        raise ValueError(
            f"{path} lacks the column {sorted(missing)[0]}; there are {', '.join(file.schema_arrow.names)}"
        )
    for batch in file.iter_batches(columns=["pair_id", "score"]):
        yield from zip(batch["pair_id"].to_pylist(), batch["score"].to_pylist(), strict=True)


def _rows(pairs: Path) -> int:
    if not pairs.is_file():
        raise FileNotFoundError(f"{pairs} is missing: run `dvc repro prepare_data`")
    return int(pq.ParquetFile(pairs).metadata.num_rows)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
