"""Rows that no table names: systems that were added since, and variants of MeDiM that the paper has not.

Whoever adds a baseline writes nothing into medim/tables.py for it: what was evaluated and stands nowhere gets a row
before the trivial ones. A system, which is called what its metrics file calls it, stands in those of Tables 1, 2, 3, 5
and Figure 5a that ask what it answers (Tables 6 and 7 compare MeDiM with experts; the downstream figures have arms). A
variant, whose only row is called MeDiM, is called by its own name and stands in Table 4, the ablation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medim.table_cells import seeds_of
from medim.tables import MEDIM, READERS, TABLES, TRIVIAL, Column, Metrics, Row, Source, Table, World

OF_SYSTEMS = ("table1", "table2", "table3", "table5", "figure5a")
OF_VARIANTS = ("table4",)


def with_further_rows(table: Table, metrics: Metrics, models: Sequence[str], world: World) -> Table:
    """The table with rows of the models that no table names.

    Args:
        metrics: model -> content of metrics/<model>.json.
        models: those of params.yaml:evaluate.models, in whose order further rows stand.
        world: the datasets; what fills no column that the table has of them has no row in it.
    """
    if table.id not in (*OF_SYSTEMS, *OF_VARIANTS):
        return table
    columns = table.columns(world)
    found: list[Row] = []
    for model in unnamed([name for name in models if name in metrics]):
        rows = metrics[model]["rows"]
        variant = is_variant(rows)
        if variant == (table.id in OF_VARIANTS):
            found += [
                Row(model if variant else name, (Source(model, name), *_rated(table, name, metrics)))
                for name, entries in rows.items()
                if _fills(entries, columns)
            ]
    first = before_trivial([row.name for row in table.rows])
    return replace(table, rows=(*table.rows[:first], *found, *table.rows[first:]))


def before_trivial(names: Sequence[str]) -> int:
    """Where further rows stand among the names of a table's rows: before the first trivial one, or at the end."""
    return next((i for i, name in enumerate(names) if name.startswith(TRIVIAL)), len(names))


def unnamed(models: Sequence[str]) -> list[str]:
    """The models that fill no row of any table; further training seeds of a model are in its own row."""
    named = [source for table in TABLES for source in table.models]
    seeds = {name for model in (*named, *models) for suffix, name in seeds_of(model, models).items() if suffix}
    return [model for model in models if model not in named and model not in seeds]


def is_variant(rows: Iterable[str]) -> bool:
    """Whether these are the names of a variant of MeDiM's rows."""
    return set(rows) == {MEDIM.name}


def _fills(entries: Mapping[str, Any], columns: Sequence[Column]) -> bool:
    return any(all(key in entries for key in column.keys) for column in columns)


def _rated(table: Table, name: str, metrics: Metrics) -> tuple[Source, ...]:
    """What readers said of a system's pairs, where they were shown some."""
    shown = table.id == "figure5a" and name in metrics.get(READERS, {}).get("rows", {})
    return (Source(READERS, name),) if shown else ()
