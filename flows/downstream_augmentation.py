"""Flow `downstream-augmentation`: synthetic pairs, the downstream models trained on them, and their tables."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import State

from flows.flow_body import run_flow
from flows.run_stages import Policy

NAME = "downstream-augmentation"
PREFIXES = ("synthesize_pairs", "train_downstream", "evaluate_downstream", "record_tables")
TABLES = ("figure5a", "figure5b", "figure5c", "figure6a", "figure6b", "downstream")


@flow(name=NAME)
def downstream_augmentation(stage_hours: float, retries: int, retry_seconds: float) -> State[Any] | None:
    """Train report generators with and without synthetic pairs, and tabulate what that changes (Figures 5 and 6).

    Runs the stages whose names begin with PREFIXES and all that they need, where DVC finds them stale.

    Args:
        stage_hours: longest time of one stage.
        retries: further attempts after a transient failure; a bug is not tried again.
        retry_seconds: pause before the first of them, doubled for each one more.
    """
    return run_flow(NAME, PREFIXES, TABLES, Policy(3600 * stage_hours, retries, retry_seconds))
