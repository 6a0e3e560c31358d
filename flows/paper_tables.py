"""Flow `paper-tables`: everything, up to the paper's tables and figures."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import State

from flows.flow_body import run_flow
from flows.run_stages import Policy

NAME = "paper-tables"
PREFIXES = ("record_tables",)
TABLES = (
    "mission", "vqgan", "table1", "table2", "table3", "table4", "table5", "table6", "table7", "figure5a",
    "report_errors",
)  # fmt: skip


@flow(name=NAME)
def paper_tables(stage_hours: float, retries: int, retry_seconds: float) -> State[Any] | None:
    """Bring every table of the paper up to date: `dvc repro` with a page, several GPUs at once and retries.

    Args:
        stage_hours: longest time of one stage.
        retries: further attempts after a transient failure; a bug is not tried again.
        retry_seconds: pause before the first of them, doubled for each one more.
    """
    return run_flow(NAME, PREFIXES, TABLES, Policy(3600 * stage_hours, retries, retry_seconds))
