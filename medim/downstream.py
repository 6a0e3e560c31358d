"""What a report writer of the downstream study is trained on: real pairs, synthetic ones, or both (Figures 5, 6).

A mix is data: how many pairs of each source a dataset has, in multiples of one number. Every dataset of a mix has the
same counts (1:1 domains), and every mix is trained with the settings of its method, so with as many optimiser steps of
as many pairs: what differs is which pairs these are. `real_twice` is the control: as many more pairs, all of them real.

Real pairs are drawn from the training split in an order of the seed, and a smaller mix's are among a larger one's.
Synthetic ones are the first of their file that pass the mix's filter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medim.baselines.base import TrainingOrder
from medim.pairs import Pair, iter_pairs, write_pairs
from medim.synthesis import read_held_out
from medim.synthesis_filters import NO_FILTER, PairFilter, kept, read_scores

Rows = NDArray[np.int64]
MIX = "mix.json"  # what a mix consists of, beside its files


@dataclass(frozen=True)
class Pool:
    """Pairs of each dataset, in multiples of the study's number of pairs."""

    real: float
    synthetic: Mapping[str, float]  # generator -> its pairs

    def counts(self, pairs: int) -> dict[str, int]:
        """Source ("" for real pairs, else a generator) -> pairs of each dataset; sources without any are left out."""
        parts = {"": self.real, **self.synthetic}
        return {source: round(part * pairs) for source, part in parts.items() if round(part * pairs)}


@dataclass(frozen=True)
class Mix:
    """What one training of the study sees."""

    pairs: Pool
    first: Pool | None  # what the first steps see instead, alone; null: there is one part only
    first_share: float  # of the steps; 0 without `first`
    filter: PairFilter | None  # that synthetic pairs must pass; null: none
    seed_offset: int  # added to seed: of the training and of the draw of real pairs

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ValueError: names the setting and its value.
        """
        pools = [self.pairs] if self.first is None else [self.pairs, self.first]
        parts = [part for pool in pools for part in (pool.real, *pool.synthetic.values())]
        if min(parts) < 0 or any(pool.real + sum(pool.synthetic.values()) <= 0 for pool in pools):
            raise ValueError(f"a mix needs pairs, and no negative number of them, got {pools}")
        if (self.first is None) != (self.first_share == 0) or not 0 <= self.first_share < 1:
            raise ValueError(
                f"first_share must be 0 without `first` and between 0 and 1 with it, got {self.first_share}"
            )

    @property
    def generators(self) -> tuple[str, ...]:
        """Generators whose pairs are needed."""
        pools = [self.pairs] if self.first is None else [self.first, self.pairs]
        return tuple(dict.fromkeys(name for pool in pools for name, part in pool.synthetic.items() if part > 0))


@dataclass(frozen=True)
class MixFiles:
    """A written mix."""

    train: Mapping[str, Path]  # dataset -> Parquet file of its training pairs
    order: TrainingOrder | None
    seed_offset: int  # of the training
    counts: Mapping[str, Mapping[str, int]]  # dataset -> source -> training pairs


def overlaid(settings: Mapping[str, Any], changes: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Settings of a method with some of their values replaced; both are nested alike. `place` stands in errors.

    Raises:
        KeyError: a changed setting that the method does not have.
    """
    out = dict(settings)
    for key, value in changes.items():
        if key not in out:
            raise KeyError(f"{place} has no {key!r}, it has {', '.join(out)}")
        nested = isinstance(value, Mapping) and isinstance(out[key], Mapping)
        out[key] = overlaid(out[key], value, f"{place}.{key}") if nested else value
    return out


def study_settings(usual: Mapping[str, Any], changes: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The settings of every arm of a method: those of its row, `usual`, with `changes`.

    Raises:
        KeyError: see `overlaid`.
        ValueError: something changes that the prior has settled, which all arms share with the row.
    """
    place = f"train_downstream.changes.{method}"
    if usual.get("pretraining") is not None:
        settled = [name for name in ("pretraining", "start") if name in changes]
        settled += [f"words.{name}" for name in ("tokenizer", "vocabulary") if name in changes.get("words", {})]
        if settled:
            raise ValueError(
                f"params.yaml:{place} changes {', '.join(settled)}, but every arm begins with the prior of "
                f"models/{method}: change train_baseline.settings.{method} instead"
            )
    return overlaid(usual, changes, f"params.yaml:train_baseline.settings.{method}")


def write_mix(
    mix: Mix, pairs: int, real: Mapping[str, Path], synthetic: Mapping[str, Path], seed: int, folder: Path
) -> int:
    """Write `folder`/<dataset>.parquet with the training pairs of a mix, and `folder`/mix.json, which describes it.

    Returns how many pairs they are.

    Args:
        mix: see `Mix`.
        pairs: the study's number of pairs a dataset, of which the mix has multiples.
        real: dataset -> Parquet file of its training pairs, which are drawn from.
        synthetic: generator -> its folder (see `medim.synthesis`).
        seed: of the draw of real pairs.
        folder: of the result.

    Raises:
        ValueError: a source has fewer pairs than the mix needs of it, or nothing is left of it; see also `kept`.
        KeyError: the mix names a generator that is not in `synthetic`.
    """
    unknown = [name for name in mix.generators if name not in synthetic]
    if unknown:
        raise KeyError(f"no generator {unknown[0]!r}, there are {', '.join(synthetic)} (params.yaml:synthesize_pairs)")
    pools = [mix.pairs] if mix.first is None else [mix.first, mix.pairs]
    if not all(pool.counts(pairs) for pool in pools):
        raise ValueError(f"of {pairs} pairs a dataset nothing is left for {mix}: raise params.yaml:mix_pairs.pairs")
    counts: dict[str, dict[str, int]] = {}
    firsts: dict[str, int] = {}
    for dataset, train in real.items():
        rows = [_rows_of(pool.counts(pairs), mix, dataset, train, synthetic, seed) for pool in pools]
        chosen = chain.from_iterable(_pairs_of(part, dataset, train, synthetic) for part in rows)
        write_pairs(folder / f"{dataset}.parquet", _once(chosen))
        firsts[dataset] = sum(len(found) for found in rows[0].values())
        counts[dataset] = _counted(rows)
    page = {"datasets": list(real), "mix": asdict(mix), "counts": counts, "first_pairs": firsts}
    (folder / MIX).write_text(json.dumps(page, indent=1, sort_keys=True) + "\n")
    return sum(sum(of_source.values()) for of_source in counts.values())


def read_mix(folder: Path) -> MixFiles:
    """What `write_mix` wrote.

    Raises:
        FileNotFoundError: nothing was written there.
    """
    if not (folder / MIX).is_file():
        raise FileNotFoundError(f"{folder / MIX} is missing: run `dvc repro mix_pairs`")
    page = json.loads((folder / MIX).read_text())
    mix = page["mix"]
    order = None if mix["first"] is None else TrainingOrder(page["first_pairs"], mix["first_share"])
    files = {name: folder / f"{name}.parquet" for name in page["datasets"]}
    return MixFiles(files, order, mix["seed_offset"], page["counts"])


def _rows_of(
    counts: Mapping[str, int], mix: Mix, dataset: str, train: Path, synthetic: Mapping[str, Path], seed: int
) -> dict[str, Rows]:
    """Source -> the rows of its file that a pool takes, ascending."""
    out: dict[str, Rows] = {}
    for source, count in counts.items():
        if source:
            there = _passing(synthetic[source], dataset, mix.filter or NO_FILTER)
            advice = f"raise params.yaml:synthesize_pairs.settings.pairs, or let {source}'s pairs pass more easily"
        else:
            there = np.random.default_rng(seed).permutation(_number_of(train))
            advice = f"lower params.yaml:mix_pairs.pairs, or raise prepare_data.datasets.{dataset}.train"
        if len(there) < count:
            name = source or "the real training pairs"
            raise ValueError(f"a mix needs {count} pairs of {dataset} from {name}, there are {len(there)}: {advice}")
        out[source] = np.sort(there[:count])
    return out


def _number_of(path: Path) -> int:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro prepare_data`")
    return int(pq.ParquetFile(path).metadata.num_rows)


def _passing(folder: Path, dataset: str, asked: PairFilter) -> Rows:
    """Rows of a generator's file that pass a filter."""
    scores = read_scores(folder / f"{dataset}.parquet")
    real = read_held_out(folder, dataset)["nearest"] if asked.nearest_quantile is not None else None
    return np.flatnonzero(kept(scores, asked, np.zeros(0) if real is None else real))


def _pairs_of(rows: Mapping[str, Rows], dataset: str, train: Path, synthetic: Mapping[str, Path]) -> Iterator[Pair]:
    """The pairs of these rows, source by source, streamed."""
    for source, chosen in rows.items():
        path = synthetic[source] / f"{dataset}.parquet" if source else train
        wanted = iter(chosen.tolist())
        row = next(wanted, None)
        for number, pair in enumerate(iter_pairs(path)):
            if row is None:
                break
            if number == row:
                yield pair
                row = next(wanted, None)


def _once(pairs: Iterator[Pair]) -> Iterator[Pair]:
    """Pairs whose ids are renamed where they come again: a pair may stand in both parts of a mix."""
    seen: dict[str, int] = {}
    for pair in pairs:
        times = seen[pair.pair_id] = seen.get(pair.pair_id, 0) + 1
        yield pair if times == 1 else Pair(**{**vars(pair), "pair_id": f"{pair.pair_id}-{times}"})


def _counted(parts: list[dict[str, Rows]]) -> dict[str, int]:
    """Source -> pairs over all parts."""
    out: dict[str, int] = {}
    for rows in parts:
        for source, chosen in rows.items():
            out[source or "real"] = out.get(source or "real", 0) + len(chosen)
    return out
