"""What the model of a table's row was given: examples, those of a prior before, parameters, minutes.

Tables hold no seconds, so that the same run gives the same bytes; MLflow and what is published join them from costs/.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COSTS = ("seconds", "peak_bytes", "parameters", "examples", "pretraining_examples", "pretraining_seconds")
TRAININGS = "train_*@*.json"
BESIDE = ("table1", "table2", "table3", "table5", "table7")  # tables whose rows are systems
PRIORS = {"backbone": "pretrain_backbone", "towers": "pretrain_towers"}  # model that a training reads -> its own stage
HEADING = "What the rows were given"
HEAD = ("", "training pairs seen", "of a prior before", "parameters", "minutes, priors among them")
NOT_KNOWN = "not known"
Costs = Mapping[str, Mapping[str, Any]]


def read_costs(folder: Path, pattern: str = "*.json") -> dict[str, dict[str, Any]]:
    """Instance -> content of its costs/<instance>.json, in order of the names.

    A training that reads a prior which a stage of its own has made has that prior's examples as `pretraining_examples`
    and its time as `pretraining_seconds`; a training that makes its prior itself counts its time in `seconds`.
    """
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))}
    for cost in found.values():
        read = [Path(one).name for one in cost.get("inputs", {})]
        files = [folder / f"{stage}.json" for name, stage in PRIORS.items() if name in read]
        priors = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        if files and len(priors) == len(files):  # else they were not trained here, and what they took is not known
            cost["pretraining_examples"] = sum(one["examples"] for one in priors)
            cost["pretraining_seconds"] = sum(one["seconds"] for one in priors)
    return found


def costs_of_rows(costs: Costs, rows: Mapping[str, Iterable[str]]) -> dict[str, dict[str, float]]:
    """Row -> what the training of its model took; rows of untrained models are left out.

    Where several models share a row (training seeds, variants), it has the costs of the one that sorts first, whose
    name the others begin with; each model's own name is a row, too, where no row is called so.

    Args:
        costs: instance -> its costs.
        rows: model -> names of its rows.
    """
    trained = {name.partition("@")[2]: cost for name, cost in costs.items() if name.startswith("train_")}
    out: dict[str, dict[str, float]] = {}
    for model in sorted(rows):
        cost = trained.get(model, {})
        values = {key: cost[key] for key in COSTS if isinstance(cost.get(key), int | float)}
        if values:
            out = {**dict.fromkeys(rows[model], values), **out}
            out.setdefault(model, values)
    return out


def costs_table(table: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Rows as text, under HEAD, of those rows of a built table whose model was trained, in the table's order."""
    rows = [row for row in dict.fromkeys(cell["row"] for cell in table["cells"]) if costs.get(row, {}).get("examples")]
    return [[row, *_texts(costs[row])] for row in rows]


def _texts(cost: Mapping[str, float]) -> list[str]:
    counts = [cost.get(key) for key in ("examples", "pretraining_examples", "parameters")]
    minutes = f"{(cost['seconds'] + cost.get('pretraining_seconds', 0.0)) / 60:.1f}"
    texts = [NOT_KNOWN if count is None else f"{count:,}" for count in counts]
    return [*texts, minutes if counts[1] is not None else f"{minutes} and a prior's"]


def append_costs(table: Path, costs: Mapping[str, Mapping[str, float]]) -> None:
    """Write what the rows were given under the Markdown and the HTML of a published table; nothing for no such row.

    Args:
        table: its JSON file, beside which the others lie.
        costs: see `costs_of_rows`.
    """
    body = costs_table(json.loads(table.read_text(encoding="utf-8")), costs)
    if not body:
        return
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *body)]
    text = table.with_suffix(".md")
    text.write_text(
        text.read_text(encoding="utf-8") + "\n".join(["", f"## {HEADING}", "", *lines, ""]), encoding="utf-8"
    )
    page = table.with_suffix(".html")
    heads, rows = _html_row("th", HEAD), "\n".join(_html_row("td", row) for row in body)
    added = f"<h2>{HEADING}</h2><table><thead>{heads}</thead>\n<tbody>{rows}</tbody></table></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", added), encoding="utf-8")


def _html_row(tag: str, row: Iterable[str]) -> str:
    first, *others = (html.escape(text) for text in row)
    return f'<tr><{tag} class="row">{first}</{tag}>' + "".join(f"<{tag}>{text}</{tag}>" for text in others) + "</tr>"
