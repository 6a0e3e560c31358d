"""What the paper prints, by table and figure (paper_numbers.json): never a number of ours."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

PAPER_FILE = Path(__file__).with_name("paper_numbers.json")


@cache
def paper_numbers() -> dict[str, Any]:
    """Every number that the paper prints, by table."""
    numbers: dict[str, Any] = json.loads(PAPER_FILE.read_text(encoding="utf-8"))
    return numbers


def printed_rows(table_id: str) -> tuple[list[str], dict[str, list[Any]]]:
    """The paper's columns and rows of a table; empty where it printed none (the charts)."""
    entry = paper_numbers().get(table_id, {})
    if "rows" in entry:
        return list(entry["columns"]), {**entry["rows"], **entry.get("seeds", {})}
    values = entry.get("values") or {}
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    return columns, {name: [row.get(column) for column in columns] for name, row in values.items()}


def printed_value(table_id: str, row: str, column: str | None) -> float | None:
    """The printed number of a cell, or None; `+6.43%` is 6.43."""
    columns, rows = printed_rows(table_id)
    if column not in columns or row not in rows:
        return None
    value = rows[row][columns.index(column)]
    return float(str(value).rstrip("%")) if value is not None else None
