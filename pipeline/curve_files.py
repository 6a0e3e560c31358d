"""A training's curves as CSV files beside its model, which `dvc plots show` and `dvc plots diff` draw.

The live log (logs/<instance>.jsonl) holds clock times, so it is no output of a stage; these files hold none, and an
experiment whose model came back from the cache brings its curves with it.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

TRAINING, VALIDATION = "curves.csv", "val_curves.csv"
VAL = "val/"


def write_curves(log: Path, folder: Path) -> None:
    """Write the scalars of a log into `folder`: those that begin with `val/` into val_curves.csv, all else into
    curves.csv; a row a step, an empty cell where a step has no value. Nothing is written where there is no log."""
    if not log.is_file():
        return
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for name, is_val in ((TRAINING, False), (VALIDATION, True)):
        rows: dict[int, dict[str, float | None]] = {}
        for line in lines:
            scalars = {key: value for key, value in line.items() if key not in ("step", "time")}
            chosen = {key: value for key, value in scalars.items() if key.startswith(VAL) is is_val}
            if chosen:
                rows.setdefault(line["step"], {}).update(chosen)
        if rows:
            _write(folder / name, rows)


def _write(path: Path, rows: dict[int, dict[str, float | None]]) -> None:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *columns])
        for step in sorted(rows):
            values = (rows[step].get(column) for column in columns)
            writer.writerow([step, *("" if value is None else repr(value) for value in values)])
