"""A built table (medim.table_cells.build_table) as Markdown, CSV and HTML: the same numbers, the same bytes each time.

Measured numbers come first; the paper's stand below under their own heading, since they were measured on other data.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medim.further_rows import before_trivial
from medim.paper_numbers import paper_numbers, printed_rows
from medim.reader_results import reader_tables
from medim.tables import MEDIM, PHANTOM, TRIVIAL, get_table

Built = Mapping[str, Any]
NOT_MEASURED = "not measured"
TINY = "Numbers of the tiny profile mean nothing."
PAPER_HEADING = "Printed in the paper (other data and models; not measured here)"
GOAL_FIELDS = ("goal", "reached")
GOAL_HEADING = "What is promised, on held-out patients"
CELL_FIELDS = ("row", "column", "metric", "value", "low", "high", "n", "seeds", "better", "paper")
TWO_DIGITS = ("FID", "reconstruction FID", "IS", "psnr")
LARGE = 1000.0  # from here on no digit after the point
ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}
WIDE = 9  # a Markdown table with more columns stands on its side

STYLE = """
body{font:14px/1.4 Georgia,'Times New Roman',serif;color:#111;background:#fff;margin:1.5em}
.scroll{overflow-x:auto}
table{border-collapse:collapse;border-top:2px solid #111;border-bottom:2px solid #111;margin:.5em 0 1em}
th,td{white-space:nowrap;padding:.2em .7em;text-align:right;font-variant-numeric:tabular-nums}
th{font-weight:normal}
th.row,td.row{text-align:left}
thead tr:last-child th{border-bottom:1px solid #111}
th.group{text-align:center;border-bottom:1px solid #999}
tr.trivial:not(tr.trivial + tr.trivial) td{border-top:1px solid #999}
tr.trivial td{color:#555}
small{color:#777}
.none{color:#999;font-style:italic}
.banner{background:#fff3cd;border:1px solid #d9b84a;padding:.5em 1em}
"""


def digits_of(metric: str) -> int:
    """Digits after the point."""
    name = metric.rpartition("/")[2].removesuffix(PHANTOM)
    return 2 if name in TWO_DIGITS or name.startswith("gain") else 3


def best_rows(built: Built) -> set[tuple[str, str]]:
    """(row, column) of the best value of each column with two measured ones that differ as printed; ties are all best.

    Nothing is best in a column where a trivial row is as good. Per cent gains are not compared with the values they
    come from.
    """
    best: set[tuple[str, str]] = set()
    for column in column_names(built):
        shown = {
            cell["row"]: round(cell["value"], digits_of(cell["metric"])) * (-1 if cell["better"] == "lower" else 1)
            for cell in built["cells"]
            if cell["column"] == column and cell["value"] is not None and not is_gain(cell["row"])
            if cell["better"] != "neither"
        }
        first = [row for row, value in shown.items() if value == max(shown.values())]
        if len(set(shown.values())) > 1 and not any(row.startswith(TRIVIAL) for row in first):
            best |= {(row, column) for row in first}
    return best


def is_gain(row: str) -> bool:
    """Whether a row holds gains in per cent instead of values."""
    return ", gain over " in row


def column_names(built: Built) -> list[str]:
    """Columns in order."""
    return list(dict.fromkeys(cell["column"] for cell in built["cells"]))


def row_names(built: Built) -> list[str]:
    """Rows in order of the table, further ones before the trivial ones; those without any cell are left out."""
    present = list(dict.fromkeys(cell["row"] for cell in built["cells"]))
    named = [row.name for row in get_table(built["id"]).rows]
    first = before_trivial(named)
    further = [name for name in present if name not in named]
    return [name for name in (*named[:first], *further, *named[first:]) if name in present]


def _by_place(built: Built) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(cell["row"], cell["column"]): cell for cell in built["cells"]}


def _number(cell: Mapping[str, Any]) -> tuple[str, str]:
    """A measured cell's value and its interval ('' if none)."""
    if is_gain(cell["row"]):
        interval = "" if cell["low"] is None else f"{cell['low']:+.1f} to {cell['high']:+.1f}"
        return f"{cell['value']:+.1f} %", interval
    digits = digits_of(cell["metric"]) if abs(cell["value"]) < LARGE else 0
    value = f"{cell['value']:.{digits}f}"
    if cell["low"] is None or cell["high"] is None:
        return value, ""
    return value, f"{cell['low']:.{digits}f}–{cell['high']:.{digits}f}"


def _counts(built: Built) -> dict[str, str]:
    """Number of examples, as text -> the columns that have it, whole datasets under their name."""
    counts: dict[str, list[str]] = {}
    for column in column_names(built):
        cells = [c for c in built["cells"] if c["column"] == column and c["value"] is not None]
        texts = [
            f"{n}" + (f" × {seeds} seeds" if seeds > 1 else "")
            for n, seeds in sorted({(c["n"], c["seeds"]) for c in cells})
        ]
        if texts:
            counts.setdefault(" or ".join(texts), []).append(column)
    out: dict[str, str] = {}
    for text, columns in counts.items():
        names = list(dict.fromkeys(column.partition("/")[0] for column in columns))
        elsewhere = {c.partition("/")[0] for other, many in counts.items() if other != text for c in many}
        whole = [name for name in names if name not in elsewhere]
        parts = [column for column in columns if column.partition("/")[0] in elsewhere]
        out[text] = ", ".join([*whole, *parts])
    return out


def footnotes(built: Built, notes: Sequence[str]) -> list[str]:
    """Lines below the table: how many examples, what was left out and why, and the caller's notes."""
    lines = [f"{columns}: n = {text}" for text, columns in _counts(built).items()]
    return [*lines, *_left_out(built), *notes]


def _left_out(built: Built) -> list[str]:
    """One line a reason: the metrics (of every dataset they are left out on) and the rows that have none."""
    rows_of: dict[tuple[str, str], list[str]] = {}  # (column, reason) -> rows
    for entry in built["left_out"]:
        rows_of.setdefault((entry["column"], entry["why"]), []).append(entry["row"])
    columns_of: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # (reason, rows) -> metrics
    for (column, why), rows in rows_of.items():
        columns_of.setdefault((why, tuple(rows)), []).append(column.partition("/")[2] if "/*" not in column else column)
    every = len({entry["row"] for part in ("cells", "left_out") for entry in built[part]})
    lines = []
    for (why, left), columns in columns_of.items():
        who = "every row" if len(left) == every else ", ".join(left)
        lines.append(f"Left out: {', '.join(dict.fromkeys(columns))} of {who}: {why}")
    return lines


def _intro(built: Built) -> list[str]:
    lines = [
        "Intervals are 95 % bootstrap intervals over pairs, those of one patient drawn apart (so they are a little "
        "narrow); bold is the best measured value of a column, where no trivial row is as good."
    ]
    return [TINY, *lines] if built["profile"] == "tiny" else lines


def render_all(built: Built, notes: Sequence[str] = ()) -> dict[str, str]:
    """A built table in every format: suffix of its file -> text."""
    return {
        ".json": json.dumps(built, indent=1) + "\n", ".md": render_markdown(built, notes), ".csv": render_csv(built),
        ".html": render_html(built, notes),
    }  # fmt: skip


def write_all(built: Built, notes: Sequence[str], folder: Path) -> None:
    """Write a built table to a folder, in every format, under its id."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in render_all(built, notes).items():
        (folder / f"{built['id']}{suffix}").write_text(text, encoding="utf-8")


def render_markdown(built: Built, notes: Sequence[str] = ()) -> str:
    """GitHub Markdown: heading, table, notes, the paper's numbers."""
    banner, *rest = _intro(built) if built["profile"] == "tiny" else ["", *_intro(built)]
    parts = [f"# {_md(built['title'])}"] + ([f"> **{banner}**"] if banner else []) + [" ".join(rest)]
    parts += _md_goals(built)
    parts += _md_on_its_side(built) if len(column_names(built)) > WIDE else [_md_upright(built)]
    for heading, head, body in reader_tables(built.get("readers", {})):
        parts += [f"**{_md(heading)}**", _md_table([*map(_md, head)], [[*map(_md, row)] for row in body])]
    parts += ["\n".join(f"- {_md(line)}" for line in footnotes(built, notes))]
    paper = paper_table(built["id"])
    if paper is not None:
        parts += [
            f"## {PAPER_HEADING}",
            _md(paper[0]),
            _md_table(["", *map(_md, paper[1])], [[*map(_md, r)] for r in paper[2]]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _arrows(built: Built) -> dict[str, str]:
    """Column -> which way is better."""
    return {c["column"]: ARROWS[c["better"]] for c in built["cells"]}


def _md_upright(built: Built) -> str:
    """Systems down, metrics across."""
    columns, cells, best, arrows = column_names(built), _by_place(built), best_rows(built), _arrows(built)
    body = [
        [_md(row), *(_md_cell(cells.get((row, column)), (row, column) in best) for column in columns)]
        for row in row_names(built)
    ]
    return _md_table(["", *(f"{_md(column)}{arrows[column]}" for column in columns)], body)


def _md_on_its_side(built: Built) -> list[str]:
    """A table a dataset, metrics down and systems across: a page is not wide enough for the other way."""
    cells, best, arrows, rows = _by_place(built), best_rows(built), _arrows(built), row_names(built)
    groups: dict[str, list[str]] = {}
    for column in column_names(built):
        groups.setdefault(column.partition("/")[0], []).append(column)
    return [
        _md_table(
            [f"**{_md(dataset)}**", *map(_md, rows)],
            [
                [
                    f"{_md(column.partition('/')[2])}{arrows[column]}",
                    *(_md_cell(cells.get((row, column)), (row, column) in best) for row in rows),
                ]
                for column in columns
            ],
        )
        for dataset, columns in groups.items()
    ]


def _md_cell(cell: Mapping[str, Any] | None, best: bool) -> str:
    if cell is None:
        return ""
    if cell["value"] is None:
        return NOT_MEASURED
    value, interval = _number(cell)
    return (f"**{value}**" if best else value) + (f" ({interval})" if interval else "")


def _md(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def goal_table(built: Built) -> tuple[list[str], list[list[str]]] | None:
    """Heads and rows of the promises (`medim.mission.mission_rows`) as text; None where there are none."""
    goals = built.get("goals") or []
    if not goals:
        return None
    trivial = list(dict.fromkeys(name for goal in goals for name in goal["trivial"]))
    head = ["", "domain", "measured", "n", "goal", "reached", *(TRIVIAL + name for name in trivial)]
    return head, [_goal_row(goal, trivial) for goal in goals]


def _goal_row(goal: Mapping[str, Any], trivial: Sequence[str]) -> list[str]:
    cell = {"row": "", "metric": goal["column"], **{key: goal[key] for key in ("value", "low", "high")}}
    others = [
        "" if name not in goal["trivial"]
        else _shown({**cell, "value": goal["trivial"][name], "low": None, "high": None})
        for name in trivial
    ]  # fmt: skip
    what = goal["what"] + (f" ({goal['worst']})" if goal["worst"] else "")
    least = f"≥ {goal['goal']:g}" + (", by the upper end of the interval" if goal["judged_by"] == "high" else "")
    return [what, goal["domain"], _shown(cell), str(goal["n"]), least, goal["reached"], *others]


def _shown(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return NOT_MEASURED
    value, interval = _number(cell)
    return value + (f" ({interval})" if interval else "")


def _md_goals(built: Built) -> list[str]:
    found = goal_table(built)
    if found is None:
        return []
    head, body = found
    return [f"**{GOAL_HEADING}**", _md_table([*map(_md, head)], [[*map(_md, row)] for row in body])]


def _html_goals(built: Built) -> str:
    found = goal_table(built)
    return "" if found is None else f"<h2>{GOAL_HEADING}</h2>{_html_plain(*found)}"


def _html_readers(built: Built) -> str:
    tables = reader_tables(built.get("readers", {}))
    return "".join(f"<h2>{html.escape(heading)}</h2>{_html_plain(head, body)}" for heading, head, body in tables)


def paper_table(table_id: str) -> tuple[str, list[str], list[list[str]]] | None:
    """The paper's title, columns and rows as text ('–' where it printed nothing); None where it printed no number."""
    columns, rows = printed_rows(table_id)
    if not rows:
        return None
    title: str = paper_numbers()[table_id]["title"]
    body = [[name, *("–" if value is None else str(value) for value in values)] for name, values in rows.items()]
    return title, columns, body


def render_csv(built: Built) -> str:
    """One line a cell; empty where a number is null. A promised one has its goal and whether it is reached."""
    goals = {(MEDIM.name, goal["column"]): goal for goal in built.get("goals") or []}
    fields = (*CELL_FIELDS, *(GOAL_FIELDS if goals else ()))
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    for cell in built["cells"]:
        goal = goals.get((cell["row"], cell["column"]), {})
        writer.writerow({**cell, **{key: goal[key] for key in GOAL_FIELDS if key in goal}})
    return out.getvalue()


def render_html(built: Built, notes: Sequence[str] = ()) -> str:
    """A page of its own in the look of LaTeX booktabs."""
    title = html.escape(built["title"])
    rows = "".join(f"<p>{html.escape(line)}</p>" for line in _intro(built) if line != TINY)
    banner = f'<p class="banner">{TINY}</p>' if built["profile"] == "tiny" else ""
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in footnotes(built, notes))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
        f"<body><h1>{title}</h1>{banner}{rows}{_html_goals(built)}{_html_measured(built)}{_html_readers(built)}"
        f"<ul>{listed}</ul>{_html_paper(built['id'])}</body></html>\n"
    )


def _html_measured(built: Built) -> str:
    columns, cells, best, arrows = column_names(built), _by_place(built), best_rows(built), _arrows(built)
    groups: list[tuple[str, int]] = []
    for column in columns:
        dataset = column.partition("/")[0]
        if groups and groups[-1][0] == dataset:
            groups[-1] = (dataset, groups[-1][1] + 1)
        else:
            groups.append((dataset, 1))
    top = "".join(f'<th class="group" colspan="{count}">{html.escape(name)}</th>' for name, count in groups)
    head = "".join(f"<th>{html.escape(column.partition('/')[2])}{arrows[column]}</th>" for column in columns)
    lines = []
    for row in row_names(built):
        kind = ' class="trivial"' if row.startswith("trivial: ") else ""
        values = "".join(_html_cell(cells.get((row, column)), (row, column) in best) for column in columns)
        lines.append(f'<tr{kind}><td class="row">{html.escape(row)}</td>{values}</tr>\n')
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{top}</tr>\n<tr><th class="row"></th>{head}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _html_cell(cell: Mapping[str, Any] | None, best: bool) -> str:
    if cell is None:
        return "<td></td>"
    if cell["value"] is None:
        return f'<td class="none">{NOT_MEASURED}</td>'
    value, interval = _number(cell)
    strong = f"<b>{value}</b>" if best else value
    return f"<td>{strong}" + (f" <small>{interval}</small>" if interval else "") + "</td>"


def _html_paper(table_id: str) -> str:
    paper = paper_table(table_id)
    if paper is None:
        return ""
    return f"<h2>{PAPER_HEADING}</h2><p>{html.escape(paper[0])}</p>{_html_plain(['', *paper[1]], paper[2])}"


def _html_plain(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of texts; the first column names the rows."""
    first, *others = head
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in others)
    rows = "".join(
        f'<tr><td class="row">{html.escape(row[0])}</td>{"".join(f"<td>{html.escape(v)}</td>" for v in row[1:])}</tr>\n'
        for row in body
    )
    return (
        f'<div class="scroll"><table><thead><tr><th class="row">{html.escape(first)}</th>{heads}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )
