"""Prints what DVC, Prefect and MLflow cost on top of the work that they order, each against the same work without it.

python -m benchmarks.orchestration [noop] [prefect] [mlflow]      (all three without a name)

noop: seconds of a `dvc repro` that finds nothing stale; needs a checkout in which everything is up to date.
prefect: five stages of two seconds one after the other, by `dvc repro` and by `prefect deployment run --watch`.
mlflow: one training (the finding reader of `tiny`, so many steps that it takes two minutes or more) that sends its
    curves to MLflow while it trains and records them at its end, against the same that does neither; which of the two
    goes first changes from round to round.

Run it alone on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.small_flow import SmallFlow
from pipeline.code_hash import instances
from pipeline.params_file import parse_yaml, read_yaml
from pipeline.profile import render

ROOT = Path(__file__).parents[1]
GOALS = {"noop": "under 5 s", "prefect": "under 3 s a stage", "mlflow": "under 5 % of a training of two minutes"}
ROUNDS = 3  # medians of so many: one run of a busy machine does not count
TRAINING_SECONDS = 140.0


def seconds_of(*command: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> tuple[float, str]:
    """How long a command takes, and what it says.

    Raises:
        SystemExit: it fails; with the end of what it said.
    """
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    return time.perf_counter() - begin, done.stdout


def time_noop() -> None:
    """Seconds of a repro that finds nothing to do, here."""
    dvc = str(Path(sys.executable).with_name("dvc"))
    _, said = seconds_of(dvc, "repro", "--dry")
    stale = [line for line in said.splitlines() if line.startswith("Running stage")]
    if stale:
        sys.exit(f"noop: {len(stale)} stages are stale here; run `dvc repro` first")
    times = [seconds_of(dvc, "repro")[0] for _ in range(3)]
    count = len(instances(read_yaml(ROOT / "dvc.yaml"), read_yaml(ROOT / "params.yaml")))
    alone, _ = seconds_of(dvc, "--version")
    print(noop_line(count, times, alone), flush=True)


def noop_line(count: int, times: Sequence[float], alone: float) -> str:
    """What noop prints. `times` in seconds, `alone` those of the shortest command there is."""
    middle = statistics.median(times)
    return (
        f"noop: dvc repro of {count} up-to-date stages {middle:.2f} s (of {len(times)}: {min(times):.2f} to "
        f"{max(times):.2f}; goal {GOALS['noop']}), {middle / alone:.1f} times as long as dvc --version ({alone:.2f} s)"
    )


def time_prefect(folder: Path) -> None:
    """The same five stages by DVC alone and by a flow, one after the other in both."""
    small = SmallFlow(folder, MEDIM_GPUS="pretended-0")
    commands = {"dvc": lambda: small.call(sys.executable, "-m", "dvc", "repro"), "flow": lambda: small.run("--watch")}
    runs: dict[str, list[Timeline]] = {name: [] for name in commands}
    try:
        small.start()
        for name in [*commands] * ROUNDS:
            small.make_stale()
            begin = time.time()
            commands[name]()
            runs[name].append(Timeline.of(begin, small.notes("start"), small.notes("end"), time.time()))
    finally:
        small.start("--stop")
    print(prefect_line(*runs.values()), flush=True)


@dataclass(frozen=True)
class Timeline:
    """Seconds of one run of the stages: until the first began, from the end of one to the next, behind the last."""

    before: float
    between: float
    after: float

    @classmethod
    def of(
        cls, begin: float, starts: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]], end: float
    ) -> Timeline:
        """From notes with `time`, unix seconds, of stages that ran one after the other."""
        began, ended = (sorted(note["time"] for note in notes) for notes in (starts, ends))
        gaps = [later - earlier for earlier, later in zip(ended, began[1:], strict=False)]
        return cls(began[0] - begin, statistics.mean(gaps), end - ended[-1])


def prefect_line(dvc: Sequence[Timeline], flow: Sequence[Timeline]) -> str:
    """What prefect prints."""

    def middle(runs: Sequence[Timeline], part: str) -> float:
        return statistics.median(getattr(run, part) for run in runs)

    once = {part: middle(flow, part) - middle(dvc, part) for part in ("before", "after")}
    each = middle(flow, "between") - middle(dvc, "between")
    count = len(instances(read_yaml(ROOT / "dvc.yaml"), read_yaml(ROOT / "params.yaml")))
    return (
        f"prefect: from the end of a stage to the beginning of the next {middle(flow, 'between'):.2f} s in a flow, "
        f"{middle(dvc, 'between'):.2f} s in dvc repro (ratio {middle(flow, 'between') / middle(dvc, 'between'):.1f}): "
        f"overhead {each:.2f} s a stage (goal {GOALS['prefect']}); once a flow {once['before']:.1f} s more before the "
        f"first stage and {once['after']:.1f} s behind the last (tables, links to MLflow); spread over the "
        f"{count} stages of params.yaml {each + sum(once.values()) / count:.2f} s a stage; medians of {len(flow)}"
    )


class Training:
    """The finding reader of `tiny`, in a folder of its own with so many steps that it takes TRAINING_SECONDS."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        folder.mkdir()
        for name in ("medim", "pipeline", "stages", "profiles", "dvc.yaml"):
            (folder / name).symlink_to(ROOT / name)
        seconds = {}
        for steps in (10, 100, 400):  # the first one compiles what is imported, and does not count
            self._write(steps)
            seconds[steps] = self.run(live=False)
        self._write(400 + round((TRAINING_SECONDS - seconds[400]) * 300 / (seconds[400] - seconds[100])))
        self.sync()  # creates MLflow's database, once for all

    def _write(self, steps: int) -> None:
        params = parse_yaml(render("tiny", ROOT / "profiles"), "tiny")
        params["threads"] = self.threads
        params["train_finding_reader"]["optim"]["steps"] = steps
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def _python(self, *arguments: str, live: bool) -> float:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "MEDIM_"))}
        env |= {"PYTHONPATH": str(self.folder), "MEDIM_LIVE": "1" if live else "0"}
        return seconds_of(sys.executable, *arguments, cwd=self.folder, env=env)[0]

    def run(self, *, live: bool) -> float:
        """Seconds of the stage from nothing; MLflow's database stays."""
        for name in ("runs", ".work"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self._python("-m", "stages.hash_code", live=live)
        return self._python("-m", "stages.train_finding_reader", live=live)

    def sync(self) -> float:
        """Seconds of recording the finished training."""
        return self._python("-m", "pipeline.tracking", "sync", live=True)


def time_mlflow(folder: Path, threads: int) -> None:
    """A training with and without live curves, in turn."""
    training = Training(folder, threads)
    without: list[float] = []
    live: list[float] = []
    syncs: list[float] = []
    for turn in range(ROUNDS):
        for on in (False, True) if turn % 2 else (True, False):
            (live if on else without).append(training.run(live=on))
            if on:
                syncs.append(training.sync())
    print(mlflow_line(without, live, syncs), flush=True)


def mlflow_line(without: Sequence[float], live: Sequence[float], syncs: Sequence[float]) -> str:
    """What mlflow prints, of the seconds of trainings without and with live curves and of recording the latter."""
    reference, sent, sync = (statistics.median(times) for times in (without, live, syncs))
    return (
        f"mlflow: a training of {reference:.1f} s takes {sent:.1f} s with live curves ({sent / reference - 1:+.1%}); "
        f"recording it at the end {sync:.1f} s, together {(sent + sync) / reference - 1:+.1%} "
        f"(goal {GOALS['mlflow']}); medians of {len(live)}, without {', '.join(f'{one:.1f}' for one in without)} s, "
        f"with {', '.join(f'{one:.1f}' for one in live)} s"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*GOALS, []], help="default: all three")
    parser.add_argument("--threads", type=int, default=2, help="of the training")
    arguments = parser.parse_args()
    chosen = arguments.what or list(GOALS)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} at the start", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if "noop" in chosen:
            time_noop()
        if "prefect" in chosen:
            time_prefect(Path(folder) / "prefect")
        if "mlflow" in chosen:
            time_mlflow(Path(folder) / "mlflow", arguments.threads)


if __name__ == "__main__":
    main()
