"""From metrics/<model>.json to the cells of a table: the JSON that runs/<world>/tables/<id>.json holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medim.metrics.gains import LEAST_BASE
from medim.paper_numbers import printed_value
from medim.tables import Column, Metrics, Row, Source, Table, World

Gains = Mapping[str, Mapping[str, Mapping[str, Any]]]  # "<of> over <over>" -> metric key -> gain with its interval

DOWNSTREAM_FILE = "downstream.json"  # beside the metrics of other models; see medim.downstream_gains


class Measured(NamedTuple):
    """One number of one row: `found` False where no metrics file has the key yet; `value` None: not measured."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    seeds: int
    found: bool


NOTHING = Measured(None, None, None, 0, 0, False)


def read_metrics(folder: Path, models: Sequence[str]) -> dict[str, Any]:
    """Model -> its metrics file, those of the downstream study too. Files of models that params.yaml no longer names
    stay out, and are named."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    rows = {name: page for name, page in found.items() if "rows" in page}
    for name in sorted(rows.keys() - set(models)):
        print(
            f"record_tables: {folder / name}.json is of no model in params.yaml:evaluate.models: left out", flush=True
        )
    return {name: page for name, page in rows.items() if name in models} | _downstream(folder)["models"]


def read_gains(folder: Path) -> Gains:
    """The gains with intervals of a folder of metrics; none where the downstream study was not evaluated."""
    gains: Gains = _downstream(folder)["gains"]
    return gains


def _downstream(folder: Path) -> dict[str, Any]:
    path = folder / DOWNSTREAM_FILE
    page: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"models": {}, "gains": {}}
    return page


def build_table(table: Table, metrics: Metrics, world: World, gains: Gains | None = None) -> dict[str, Any]:
    """The table as JSON: id, title, profile, cells, left_out.

    Args:
        metrics: model -> content of metrics/<model>.json, of the models evaluated so far. `<model>_<number>` and
            `<model>_seed<number>` are more training seeds of the same model: a cell is their mean, its interval spans
            theirs, `seeds` counts them.
        world: the datasets.
        gains: see `read_gains`; rows of gains that it does not hold are computed from the values and have no interval.

    Returns:
        `cells`: {row, column, metric, value, low, high, n, seeds, better, paper}, value null = not measured.
        `left_out`: {row, column, why}: datasets that this world lacks, and cells that make no sense for their row.

    Raises:
        KeyError: a metrics file lacks the row that the table wants from it.
    """
    cells: list[dict[str, Any]] = []
    left_out = [
        {"row": row.name, "column": f"{slot}/*", "why": f"this world has no {slot} dataset"}
        for slot in table.needs
        if getattr(world, slot) is None
        for row in table.rows
    ]
    for column in table.columns(world):
        measured = _column(table.rows, column, metrics, gains or {})
        for row in table.rows:
            reason = next((text for part, text in row.leaves_out.items() if part in column.keys[0]), None)
            if reason is not None:
                left_out.append({"row": row.name, "column": column.name, "why": reason})
            else:
                cells.append(_cell(table, row, column, measured[row.name]))
    return {"id": table.id, "title": table.title, "profile": world.profile, "cells": cells, "left_out": left_out}


def _cell(table: Table, row: Row, column: Column, measured: Measured) -> dict[str, Any]:
    return {
        "row": row.name, "column": column.name, "metric": column.metric, "value": measured.value, "low": measured.low,
        "high": measured.high, "n": measured.n, "seeds": measured.seeds, "better": column.better,
        "paper": printed_value(table.id, row.name, column.printed),
    }  # fmt: skip


def _column(rows: Sequence[Row], column: Column, metrics: Metrics, gains: Gains) -> dict[str, Measured]:
    """Row name -> its number; gains are taken after the rows they compare."""
    out: dict[str, Measured] = {}
    for row in rows:
        if not row.gain:
            out[row.name] = _row(row, column, metrics)
            continue
        stored = gains.get(" over ".join(comparison(row, rows)), {}).get(column.keys[0])
        out[row.name] = _gain(out[row.gain[0]], out[row.gain[1]]) if stored is None else _stored(stored)
    return out


def comparison(row: Row, rows: Sequence[Row]) -> tuple[str, str]:
    """The models that a row of gains compares: (of, over).

    Raises:
        KeyError: it is no row of gains, or names a row that is not there.
    """
    models = {other.name: other.sources[0].model for other in rows if other.sources}
    if row.gain is None:
        raise KeyError(f"the row {row.name!r} compares no models")
    return models[row.gain[0]], models[row.gain[1]]


def _stored(entry: Mapping[str, Any]) -> Measured:
    return Measured(entry["value"], entry["low"], entry["high"], int(entry["n"]), int(entry["seeds"]), True)


def _gain(of: Measured, over: Measured) -> Measured:
    """Relative gain in per cent, without an interval."""
    if of.value is None or over.value is None or over.value < LEAST_BASE:
        return of._replace(value=None, low=None, high=None)
    return Measured(100 * (of.value / over.value - 1), None, None, of.n, min(of.seeds, over.seeds), True)


def _row(row: Row, column: Column, metrics: Metrics) -> Measured:
    """The first source that has every key, or nothing."""
    for source in row.sources:
        parts = [_over_seeds(source, key, metrics) for key in column.keys]
        if all(part.found for part in parts):
            return parts[0] if len(parts) == 1 else _mean(parts)
    return NOTHING


def _mean(parts: Sequence[Measured]) -> Measured:
    """Mean over datasets: their errors are independent, so half-widths add in squares; n is their sum."""
    values = [part.value for part in parts if part.value is not None]
    n, seeds = sum(part.n for part in parts), min(part.seeds for part in parts)
    if len(values) < len(parts):
        return Measured(None, None, None, n, seeds, True)
    value = sum(values) / len(parts)
    down = [part.value - part.low for part in parts if part.value is not None and part.low is not None]
    up = [part.high - part.value for part in parts if part.value is not None and part.high is not None]
    if len(down) < len(parts) or len(up) < len(parts):
        return Measured(value, None, None, n, seeds, True)
    below, above = (sum(width**2 for width in side) ** 0.5 / len(parts) for side in (down, up))
    return Measured(value, value - below, value + above, n, seeds, True)


def _over_seeds(source: Source, key: str, metrics: Metrics) -> Measured:
    """A key's mean over the training seeds of a model; null as soon as one seed has null."""
    stored = source.stored_key(key)
    if stored is None:
        return NOTHING
    found = [_entries(model, source.row, metrics).get(stored) for model in _models(source, metrics)]
    entries = [entry for entry in found if entry is not None]
    if not entries:
        return NOTHING
    values, lows, highs = ([entry[part] for entry in entries] for part in ("value", "low", "high"))
    n = min(int(entry["n"]) for entry in entries)
    if None in values:
        return Measured(None, None, None, n, len(entries), True)
    low = None if None in lows else float(min(lows))
    high = None if None in highs else float(max(highs))
    return Measured(sum(values) / len(values), low, high, n, len(entries), True)


def _models(source: Source, metrics: Metrics) -> list[str]:
    """The model of a source and its further seeds, as far as they are evaluated."""
    return sorted(seeds_of(source.model, metrics).values())


def seeds_of(model: str, models: Iterable[str]) -> dict[str, str]:
    """A model's training seeds among `models`: what follows its name ("" or `_seed2` or `_2`) -> the full name."""
    seed = re.compile(re.escape(model) + r"(|_(?:seed)?\d+)")
    return {found[1]: name for name in models if (found := seed.fullmatch(name))}


def _entries(model: str, row: str | None, metrics: Metrics) -> Mapping[str, Mapping[str, Any]]:
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]] = metrics[model]["rows"]
    if row is None and len(rows) == 1:
        return next(iter(rows.values()))
    if row is None:
        raise KeyError(f"metrics/{model}.json has rows {', '.join(rows)}: a table wants its only row; rerun evaluate")
    if row not in rows and row.startswith("seed "):
        return {}  # sampling seeds are rows of their own, made only where params.yaml asks for them
    if row not in rows:
        raise KeyError(
            f"metrics/{model}.json lacks the row {row!r}, it has {', '.join(rows)}: run `dvc repro evaluate`"
        )
    return rows[row]
