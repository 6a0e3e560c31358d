"""Work over lists of shards: one file in, one file out, on this machine or on a Ray cluster.

    work = Work(address(make_encoder), {"width": 64}, receipts=folder / "receipts", threads=1, seed=0, use_torch=True)
    report = map_shards(work, list_shards(files, folder, code="…"), stage_engine(), name="encode")
    report.check()

A shard is made whole or not at all; a second call makes only what is not finished; a shard that fails is named with its
file and error while the others finish; the same inputs give the same bytes whatever engine worked (tests/pipeline/
test_shards.py kills workers and the driver to see it).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.params_file import load_top
from pipeline.resources import gpus_seen
from pipeline.shard_engines import Engine, engine_of, run
from pipeline.shard_work import Make, Outcome, Shard, Summary, Work, address, finished, shard_key, sweep
from pipeline.stage import StageRun, content_hash

Job = tuple[Path, Path, Mapping[str, Any]]  # source, target, arguments


class ShardsFailed(RuntimeError):
    """Some shards could not be made; the message names each with its file and error."""


@dataclass(frozen=True)
class Failure:
    """A shard that was not made. `error`: the traceback, or that its worker died."""

    shard: Shard
    error: str

    def __str__(self) -> str:
        """File, arguments and the last line of the error."""
        arguments = "".join(f" {name}={value}" for name, value in sorted(self.shard.arguments.items()))
        return f"{self.shard.source}{arguments}: {self.error.strip().splitlines()[-1]}"


@dataclass(frozen=True)
class Report:
    """What became of a list of shards.

    Attributes:
        summaries: what each function returned, in the order of the list; None where it failed.
        made: number of shards that this call made.
        skipped: number of those that were finished before.
        failures: those that failed, in the order of the list.
    """

    summaries: tuple[Summary | None, ...]
    made: int
    skipped: int
    failures: tuple[Failure, ...]

    def check(self) -> list[Summary]:
        """All summaries, in the order of the list.

        Raises:
            ShardsFailed: names every shard that failed.
        """
        if self.failures:
            lines = "\n".join(f"  {failure}" for failure in self.failures)
            raise ShardsFailed(
                f"{len(self.failures)} of {len(self.summaries)} shards failed, the others are finished and kept; the "
                f"same command makes these again:\n{lines}\n\nThe first error in full:\n{self.failures[0].error}"
            )
        return [summary for summary in self.summaries if summary is not None]


def list_shards(sources: Sequence[Path], folder: Path, **identity: Any) -> list[Shard]:
    """One shard a file, each with an output of the same name in `folder`.

    Args:
        sources: the files; contents are hashed.
        folder: of the outputs.
        identity: what else the outputs depend on: settings, a hash of the code (plain values).

    Raises:
        FileNotFoundError: a file is missing.
    """
    return [Shard(source, folder / source.name, shard_key(content_hash(source), **identity)) for source in sources]


def row_ranges(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of shards of `size` rows (0: one shard), the last one shorter; one empty range where rows is 0."""
    step = size or max(1, rows)
    for start in range(0, max(1, rows), step):
        yield start, min(start + step, rows)


def rows_of(path: Path) -> int:
    """Number of rows of a Parquet file, from its footer."""
    return int(pq.read_metadata(path).num_rows)


def cut(source: Path, target: Path, parts: Path, size: int, batch: int = 1) -> list[Job]:
    """Jobs over consecutive rows of a Parquet file, which they get as arguments `start` and `stop`.

    Args:
        target: what the rows of all jobs become together; the one job of an uncut file writes it itself.
        parts: folder of the outputs of several jobs.
        size: rows of a job, rounded up to a multiple of `batch`; 0: one job.
        batch: rows that a network sees at once. Where jobs begin with a batch, batches are those of the uncut file, and
            so are the bytes.
    """
    ranges = list(row_ranges(rows_of(source), -(-size // batch) * batch))
    outputs = [target] if len(ranges) == 1 else [parts / f"{start:09d}-{stop:09d}.parquet" for start, stop in ranges]
    return [(source, out, {"start": start, "stop": stop}) for out, (start, stop) in zip(outputs, ranges, strict=True)]


def stage_engine(use_torch: bool = True) -> Engine:
    """Who works for a stage: what the environment says (`engine_of`).

    Where it says nothing, neither of GPUs, and no GPU does the work, there is a worker for each of params.yaml's
    threads: small networks leave a second thread idle for a quarter of the time, a second process does not.
    """
    local = os.environ.get("MEDIM_ENGINE", "local") == "local" and os.environ.get("MEDIM_WORKER_GPUS", "0") == "0"
    alone = not local or (use_torch and gpus_seen() > 0)
    return engine_of(os.environ, 1 if alone else load_top().threads)


def stage_shards(
    run: StageRun, engine: Engine, make: Make, settings: Mapping[str, Any], jobs: Iterable[Job], use_torch: bool = True
) -> list[Summary]:
    """Do the jobs of a stage; finished ones stay until the stage has ended. Returns what each returned, in order.

    The key of the stage's work folder stands for its inputs, parameters and code, so inputs are not hashed again.

    Raises:
        ShardsFailed: see `Report.check`.
    """
    jobs = list(jobs)
    threads = engine.worker_threads(run.threads, len(jobs))
    work = Work(address(make), settings, run.work / "receipts", threads, run.seed, use_torch)
    key = {"make": work.make, "settings": settings, "threads": threads}
    shards = [
        Shard(source, target, shard_key(run.work.name, **key, **arguments), arguments)
        for source, target, arguments in jobs
    ]
    return map_shards(work, shards, engine, name=run.name).check()


def map_shards(work: Work, shards: Sequence[Shard], engine: Engine, *, name: str) -> Report:
    """Make every shard that is not finished.

    Paths are made absolute, since workers may run elsewhere.

    Args:
        work: what is done.
        shards: see `Shard`.
        engine: who does it.
        name: shown by the progress bar.

    Raises:
        ValueError: two shards have one target.
        RuntimeError: a worker cannot make its function; says why.
    """
    shards = [replace(shard, source=shard.source.absolute(), target=shard.target.absolute()) for shard in shards]
    work = replace(work, receipts=work.receipts.absolute())
    _check_targets(shards)
    outcomes: dict[str, Outcome] = {}
    for shard in shards:
        summary = finished(shard, work.receipts)
        if summary is not None:
            outcomes[shard.name] = Outcome(summary)
    todo = [shard for shard in shards if shard.name not in outcomes]
    skipped, failed = len(outcomes), 0
    try:
        with tqdm(total=len(shards), initial=skipped, desc=name, unit="shard", disable=None) as bar:
            for shard, outcome in run(engine, work, todo) if todo else ():
                if not outcome.set_up:
                    raise RuntimeError(f"{name}: {work.make} cannot be set up in a worker:\n{outcome.error}")
                outcomes[shard.name] = outcome
                failed += outcome.error is not None
                bar.set_postfix(failed=failed, refresh=False)
                bar.update()
    finally:
        for shard in shards:
            sweep(shard)  # left by workers that were killed, now or in an earlier run
    ended = [(shard, outcomes[shard.name]) for shard in shards]
    failures = tuple(Failure(shard, outcome.error) for shard, outcome in ended if outcome.error is not None)
    return Report(tuple(outcome.summary for _, outcome in ended), len(todo) - failed, skipped, failures)


def _check_targets(shards: Sequence[Shard]) -> None:
    twice = [target for target, count in Counter(shard.target for shard in shards).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} targets have several shards (first: {twice[0]}): give each its own")
