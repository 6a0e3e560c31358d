"""What every flow does: ask DVC what is stale, run that, show the result in MLflow and in Prefect."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed, State

from flows.dvc_calls import CallerGoneError
from flows.flow_report import publish
from flows.flow_runs import say_alive
from flows.graph import read_graph, with_prefix
from flows.mlflow_links import Link, SyncError, sync
from flows.run_stages import Outcome, Policy, StageRunner
from flows.slots import Slots
from flows.stage_process import TRANSIENT, Ending, StageFailed, StageProcess
from flows.stages_to_run import stages_to_run, stale_stages
from pipeline.paths import World, world_from_params
from pipeline.resources import telemetry_off


class StagesFailedError(RuntimeError):
    """Some stages of a flow are not done; the message names them."""


class PrefectTasks:
    """Runs each attempt at a stage as a task run of Prefect, with arrows from those that it needed."""

    def __init__(self) -> None:
        self.futures: dict[str, Any] = {}  # stage -> Prefect's future of its newest attempt

    def submit(self, attempt: StageProcess, number: int, needs: Sequence[str]) -> concurrent.futures.Future[Any]:
        """Start one attempt."""
        stage = attempt.stage
        name = stage if number == 1 else f"{stage}, attempt {number}"

        @task(name=stage.partition("@")[0], task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
        def run_stage() -> State[Any] | None:
            log = get_run_logger()
            if attempt.slot is not None and attempt.slot.device is not None:
                log.info("%s | on GPU %s", stage, attempt.slot.device)
            try:
                attempt.run(lambda line: log.info("%s | %s", stage, line))
            except StageFailed as error:
                if error.ending is not Ending.STOPPED:
                    raise
                return Cancelled(message=f"{stage} was stopped; what it had saved is found by the next run")
            return None

        self.futures[stage] = run_stage.submit(wait_for=[self.futures[need] for need in needs])
        return self.futures[stage].wrapped_future


def run_flow(name: str, prefixes: Sequence[str], tables: Sequence[str], policy: Policy) -> State[Any] | None:
    """Bring the stages that begin with `prefixes`, and all that they need, up to date.

    Args:
        name: of the flow and its deployment.
        prefixes: of names of stage instances.
        tables: shown on the flow's page.
        policy: see Policy.

    Returns:
        None, or Crashed where the worker is gone.

    Raises:
        GraphError, DvcError: there are no such stages, or DVC cannot tell what is stale.
        GpuError: see `devices`.
        StagesFailedError: some stages are not done.
        SyncError: the tables are there and MLflow does not show them.
    """
    telemetry_off()
    log, caller, world = get_run_logger(), os.getppid(), world_from_params()
    log.info("%s: asking DVC what is stale (world %s)", name, world.name)
    say_alive(flow_run.get_id())
    try:
        outcomes = _run_stages(prefixes, policy, lambda: os.getppid() == caller)
    except CallerGoneError as gone:
        _close_output()
        return Crashed(message=f"{gone}; run the deployment again")
    _finish(name, world, tables, outcomes, policy)
    return None


def _run_stages(prefixes: Sequence[str], policy: Policy, alive: Callable[[], bool]) -> list[Outcome]:
    log, graph = get_run_logger(), read_graph()
    stages = stages_to_run(graph, stale_stages(policy.seconds, log.info, alive), with_prefix(graph, prefixes))
    slots = Slots()
    where = ", ".join(str(device) for device in slots.devices if device is not None) or "none, one job at a time"
    log.info("%d stages to run: %s (GPUs: %s)", len(stages), ", ".join(stages) or "none", where)
    return StageRunner(graph, slots, policy, PrefectTasks().submit, log.info).run(stages, alive)


def _finish(name: str, world: World, tables: Sequence[str], outcomes: Sequence[Outcome], policy: Policy) -> None:
    log = get_run_logger()
    links: list[Link] = []
    unseen: SyncError | None = None
    try:
        links = _sync(world, policy) if world.tables().is_dir() else []
    except SyncError as error:
        unseen = error
    publish(name, world, tables, outcomes, links)
    for link in links:
        log.info("MLflow: %s %s", link.page, link.address)
    lost = [f"{outcome.stage} ({outcome.state})" for outcome in outcomes if not outcome.done]
    if lost:
        if unseen is not None:
            log.warning("%s", unseen)  # what is raised is the stages' failure
        raise StagesFailedError(f"{len(lost)} of {len(outcomes)} stages are not done: {', '.join(lost)}")
    if unseen is not None:
        raise unseen
    log.info("%s: %d stages done", name, len(outcomes))


def _sync(world: World, policy: Policy) -> list[Link]:
    """`sync`, tried again as a stage is after what may pass."""
    attempt = 0
    while True:
        try:
            return sync(world)
        except SyncError as error:
            if attempt == policy.retries or not TRANSIENT.search(str(error)):
                raise
            get_run_logger().info("%s; tried again", error)
        time.sleep(policy.pause * 2**attempt)
        attempt += 1


def _close_output() -> None:
    """Send what is printed nowhere: the worker that read it is gone, and a write would end this process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
