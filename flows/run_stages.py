"""Runs stages, each after those that it needs, as many at once as there are slots.

Many flows may do this at once in one folder: a stage that another flow runs is waited for, and is then found done. A
flow takes the stage's lock first and the slot second and never waits while it holds one of them, so two flows cannot
wait for each other.

Deviation from Prefect's own retries: they sleep in the thread of the task, and a cancelled flow waits for that sleep.
Here an attempt that is to be repeated is a new task run, and the pause before it holds neither thread nor slot.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flows.dvc_calls import CallerGoneError
from flows.graph import Graph
from flows.slots import Slots, holder, try_lock
from flows.stage_process import Ending, StageFailed, StageProcess, classify
from flows.stages_to_run import longer
from pipeline.paths import STAGE_LOCKS

POLL = 0.5  # seconds
WAIT_TOLD = 600.0  # seconds between two words on what a stage waits for
END = 12.0  # seconds that a stopped attempt may take; `supervise` needs less


@dataclass(frozen=True)
class Policy:
    """How patient a flow is."""

    seconds: float  # longest time of one stage, waiting for other processes of DVC included
    retries: int  # further attempts after a transient failure
    pause: float  # seconds before the first of them; doubled for each one more


@dataclass
class Outcome:
    """What became of a stage."""

    stage: str
    state: str = "waiting"  # done | not run | the value of an Ending
    attempts: int = 0
    seconds: float = 0.0  # of all attempts
    waited: float = 0.0  # seconds, of all pauses in which another DVC was busy
    reason: str = ""
    again: float = 0.0  # time.monotonic() before which there is no further attempt
    pause: float = field(default=0.0, repr=False)  # seconds, the last one before which another DVC was busy

    @property
    def spent(self) -> float:
        """Seconds of the stage's time: those of its attempts and of waiting for DVC, none of waiting for a slot."""
        return self.seconds + self.waited

    @property
    def done(self) -> bool:
        """It ran, or DVC found it up to date."""
        return self.state == "done"


# Starts `process.run` in another thread: (attempt, its number, stages of this flow that it needed) -> its future.
Submit = Callable[[StageProcess, int, Sequence[str]], "concurrent.futures.Future[Any]"]


def lock_file(stage: str) -> Path:
    """What is locked while a flow runs the stage."""
    return STAGE_LOCKS / f"{quote(stage, safe='@')}.lock"


class StageRunner:
    """The stages of one flow."""

    def __init__(
        self, graph: Graph, slots: Slots, policy: Policy, submit: Submit, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """`say` is told what a stage waits for, where another process has it."""
        self.graph, self.slots, self.policy, self.submit, self.say = graph, slots, policy, submit, say
        self._told: dict[str, float] = {}  # stage -> time.monotonic() of the last word on its waiting
        self.outcomes: dict[str, Outcome] = {}
        self._waiting: list[str] = []
        self._running: dict[concurrent.futures.Future[Any], StageProcess] = {}
        self._attempts: list[StageProcess] = []

    def run(self, stages: Sequence[str], alive: Callable[[], bool] = lambda: True) -> list[Outcome]:
        """Run the stages (in the graph's order) to the end; what follows from a failed one is not run.

        Args:
            stages: as `stages_to_run` gives them.
            alive: asked twice a second; once it says no, everything is ended.

        Raises:
            CallerGoneError: `alive` said no.
        """
        self.outcomes = {stage: Outcome(stage) for stage in stages}
        self._waiting = list(stages)
        try:
            while self._waiting or self._running:
                if not alive():
                    raise CallerGoneError("the worker that started this flow is gone; what it had finished stays done")
                self._start_ready()
                self._collect()
        except BaseException:
            self.stop()
            raise
        return list(self.outcomes.values())

    def stop(self) -> None:
        """End every attempt and wait until it has ended."""
        for attempt in self._attempts:
            attempt.stop()
        concurrent.futures.wait(self._running, timeout=END)

    def _start_ready(self) -> None:
        for stage in list(self._waiting):
            needs = [self.outcomes[need] for need in sorted(self.graph.above[stage]) if need in self.outcomes]
            failed = [need.stage for need in needs if need.state not in ("done", "waiting")]
            if failed:
                self._waiting.remove(stage)
                self.outcomes[stage].state, self.outcomes[stage].reason = "not run", f"{failed[0]} is not done"
            elif all(need.done for need in needs) and time.monotonic() >= self.outcomes[stage].again:
                attempt = self._attempt(stage)
                if attempt is not None:
                    self._waiting.remove(stage)
                    self._launch(attempt, [need.stage for need in needs])

    def _attempt(self, stage: str) -> StageProcess | None:
        """An attempt with its lock and slot, or None where one of them is taken."""
        note = f"{stage} of the flow with PID {os.getpid()} in {Path.cwd()}"
        lock = try_lock(lock_file(stage), note=note)
        if lock is None:
            self._tell_waiting(stage, [holder(lock_file(stage))])
            return None
        computes = stage in self.graph.computing
        slot = self.slots.take(note) if computes else None
        if computes and slot is None:
            lock.release()
            self._tell_waiting(stage, self.slots.holders())
            return None
        return StageProcess(stage, lock, slot, max(1.0, self.policy.seconds - self.outcomes[stage].spent))

    def _tell_waiting(self, stage: str, holders: Sequence[str]) -> None:
        """Say for whom a stage waits, at first and every WAIT_TOLD seconds; of this flow's own stages nothing."""
        others = [one for one in holders if f"PID {os.getpid()} " not in one]
        if not others or time.monotonic() - self._told.get(stage, -WAIT_TOLD) < WAIT_TOLD:
            return
        self._told[stage] = time.monotonic()
        self.say(f"{stage} waits for {'; '.join(others)}")

    def _launch(self, attempt: StageProcess, needs: Sequence[str]) -> None:
        outcome = self.outcomes[attempt.stage]
        outcome.attempts += 1
        self._attempts = [other for other in self._attempts if other in self._running.values()] + [attempt]
        attempt.begun = time.monotonic()
        self._running[self.submit(attempt, outcome.attempts, needs)] = attempt

    def _collect(self) -> None:
        """Wait a moment, then book what has ended."""
        if not self._running:
            time.sleep(POLL if self._waiting else 0)
            return
        ended, _ = concurrent.futures.wait(self._running, POLL, concurrent.futures.FIRST_COMPLETED)
        for future in ended:
            attempt = self._running.pop(future)
            attempt.release()
            self.outcomes[attempt.stage].seconds += time.monotonic() - attempt.begun
            if attempt.finished:
                self.outcomes[attempt.stage].state = "done"
            else:
                self._book_failure(attempt)

    def _book_failure(self, attempt: StageProcess) -> None:
        """Say how it failed, or plan one more attempt."""
        outcome, error = self.outcomes[attempt.stage], attempt.failure
        if error is None:
            ending = Ending.TRANSIENT  # Prefect's trouble, not its own
        else:
            ending = error.ending if isinstance(error, StageFailed) else classify(1, [str(error)])
        outcome.reason = str(error) if error is not None else "Prefect ended the task before the stage began"
        now = time.monotonic()
        if ending is Ending.BUSY and outcome.spent <= self.policy.seconds:
            outcome.attempts -= 1
            outcome.pause = longer(outcome.pause)
            outcome.waited += outcome.pause
            outcome.again = now + outcome.pause
        elif ending is Ending.TRANSIENT and outcome.attempts <= self.policy.retries:
            outcome.again = now + self.policy.pause * 2 ** (outcome.attempts - 1)
        else:
            outcome.state = ending.value
            return
        self._waiting.insert(0, attempt.stage)
