"""What a flow leaves on its page in Prefect: the stages, the paper's tables, links to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.mlflow_links import Link
from flows.run_stages import Outcome
from pipeline.paths import World

TABLES = "record_tables"  # the stage that writes them
REASON = 300  # characters of a failure in the table; its task run has all


def stage_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a stage."""
    return [
        {
            "stage": outcome.stage,
            "state": outcome.state,
            "attempts": outcome.attempts,
            "seconds": round(outcome.seconds, 1),
            "reason": "" if outcome.done else outcome.reason[-REASON:],
        }
        for outcome in outcomes
    ]


def are_new(outcomes: Sequence[Outcome]) -> bool:
    """Whether the tables that lie there are those of this flow: their stage was up to date, or is done."""
    return all(outcome.done for outcome in outcomes if outcome.stage == TABLES)


def tables_page(world: World, tables: Sequence[str], links: Sequence[Link], new: bool = True) -> str:
    """The tables that there are, as Markdown, each with the link to its page in MLflow; `new`: see `are_new`."""
    address = {link.page: link.address for link in links}
    parts = [f"World `{world.name}`."]
    if not new:
        parts.append(f"**Tables of an earlier run**: {TABLES} is not done in this one.")
    for table in tables:
        path = world.table(table, ".md")
        if path.is_file():
            link = f"[{table} in MLflow]({address[table]})" if table in address else f"`{path}`"
            parts.append(f"{path.read_text(encoding='utf-8').strip()}\n\n{link}")
    others = [link for link in links if link.page not in tables]
    if others:
        parts.append("More in MLflow: " + ", ".join(f"[{link.page}]({link.address})" for link in others))
    return "\n\n".join(parts) + "\n"


def artifact_key(name: str, table: str) -> str:
    """Key of the link to a table: Prefect takes lowercase letters, digits and dashes only."""
    return f"{name}-{table}".replace("_", "-")


def publish(name: str, world: World, tables: Sequence[str], outcomes: Sequence[Outcome], links: Sequence[Link]) -> None:
    """Make the artifacts of this flow run: `<name>-stages`, `<name>-tables` and one link a table, `<name>-<table>`."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

    rows = stage_rows(outcomes)
    if rows:
        create_table_artifact(rows, key=f"{name}-stages", description=f"What became of the stages of {name}")
    new = are_new(outcomes)
    page = tables_page(world, tables, links, new)
    create_markdown_artifact(page, key=f"{name}-tables", description="The paper's tables")
    for link in links:
        if new and link.page in tables:
            text = f"{link.page} in MLflow"
            create_link_artifact(
                link.address, text, artifact_key(name, link.page), "The table in MLflow, one run a row"
            )
