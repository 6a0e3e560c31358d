"""A training killed at any moment and started again ends with the bytes of one that was never killed.

Every training stage is run by a small driver that counts steps, keeps a copy of each checkpoint, and waits where the
test wants to kill it: in the middle of the write of a checkpoint, or after the last one. The kill itself is SIGKILL
from outside, and the stage's own code runs unchanged.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from worlds import OPTIM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS, EVERY = OPTIM["steps"], OPTIM["checkpoint_every"]
PATIENCE = 240  # seconds until a stage is where it is to be killed
HOLD = 600  # seconds that a held stage waits for its kill

DRIVER = """
import io, os, runpy, shutil, sys, time
from pathlib import Path
import torch
import medim.training as training

keep, hold_in_write, hold_after = Path(os.environ["KEEP"]), os.environ["HOLD_IN_WRITE"], os.environ["HOLD_AFTER"]
step, save, write = training.train_step, training.save_checkpoint, torch.save

def slow_step(*args, **kwargs):
    time.sleep(0.1)
    logs = step(*args, **kwargs)
    with (keep / "steps").open("a") as file:
        file.write(".")
    return logs

def held_write(state, file):
    if str(state["step"]) != hold_in_write:
        return write(state, file)
    buffer = io.BytesIO()
    write(state, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    time.sleep(%d)

def kept_checkpoint(state, folder):
    path = save(state, folder)
    shutil.copy(path, keep / path.name)
    if str(state["step"]) == hold_after:
        (keep / "held").touch()
        time.sleep(%d)
    return path

training.train_step, training.save_checkpoint, torch.save = slow_step, kept_checkpoint, held_write
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
""" % (HOLD, HOLD)  # noqa: UP031 - the code holds braces

TRAININGS = {  # stage -> its options, what it writes under runs/small
    "train_finding_reader": ([], ["models/finding_reader", "metrics/finding_reader.json"]),
    "train_vqgan": ([], ["models/vqgan", "figures/vqgan_training.png"]),
    "pretrain_backbone": ([], ["models/backbone"]),
    "pretrain_towers": ([], ["models/towers"]),
    "train_medim": (["--variant", "medim"], ["models/medim"]),
}


class Training:
    """One training stage in a clone, to be started, killed and started again."""

    def __init__(self, clone, stage, keep):
        self.clone, self.stage, self.keep = clone, stage, keep
        self.options, self.outputs = TRAININGS[stage]
        self.world = clone.folder / "runs/small"
        self.work = clone.folder / ".work" / stage
        self.keep.mkdir()

    def clear(self):
        """What DVC does before it runs a stage: remove its outputs."""
        for name in self.outputs:
            path = self.world / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def start(self, hold_in_write=0, hold_after=0):
        """The running stage."""
        (self.keep / "steps").write_text("")
        command = [sys.executable, "-c", DRIVER, f"stages.{self.stage}", *self.options]
        env = {"KEEP": str(self.keep), "HOLD_IN_WRITE": str(hold_in_write), "HOLD_AFTER": str(hold_after)}
        return subprocess.Popen(
            command, cwd=self.clone.folder, env=self.clone.environment(**env), text=True,
            stdout=(self.keep / "said").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def steps_run(self):
        """Optimiser steps of the newest process."""
        return len((self.keep / "steps").read_text())

    def said(self):
        """What the newest process printed."""
        return (self.keep / "said").read_text()

    def finish(self):
        """Run to the end; returns the step that the process went on from."""
        process = self.start()
        assert process.wait(PATIENCE) == 0, self.said()
        found = re.search(r"resume at step (\d+) of (\d+)", self.said())
        return int(found[1]) if found else 0

    def kill_when(self, ready, **hold):
        """Start, wait until `ready()`, SIGKILL."""
        process = self.start(**hold)
        try:
            deadline = time.monotonic() + PATIENCE
            while not ready():
                assert process.poll() is None, f"the stage ended before it could be killed:\n{self.said()}"
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -9

    def checkpoints(self, pattern):
        """Names in the work folder."""
        return sorted(path.name for path in self.work.glob(f"*/{pattern}"))

    def result(self):
        """Path -> bytes of everything that the stage writes."""
        paths = [self.world / name for name in self.outputs]
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        return {str(file.relative_to(self.world)): file.read_bytes() for file in files if file.is_file()}

    def curves(self):
        """Lines of the log without their time."""
        name = f"{self.stage}@{self.options[1]}" if self.options else self.stage
        lines = [json.loads(line) for line in (self.world / f"logs/{name}.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "time"} for line in lines]

    def final_state(self):
        """The last checkpoint: weights, optimisers, schedules, EMA, step."""
        return torch.load(self.keep / f"step_{STEPS:09d}.pt", weights_only=True)


def assert_same(one, two, place=""):
    """Equal states, tensor by tensor and bit by bit."""
    assert type(one) is type(two), place
    if isinstance(one, dict):
        assert list(one) == list(two), place
        for key in one:
            assert_same(one[key], two[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), place
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{place}/{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype and torch.equal(one, two), place
    else:
        assert one == two, place


@pytest.fixture(scope="module")
def clone(finished, tmp_path_factory):
    return finished.copy(tmp_path_factory.mktemp("killed") / "clone")


@pytest.fixture(scope="module", params=TRAININGS)
def unharmed(request, clone, tmp_path_factory):
    """(stage, result, curves, final state) of a run that was never killed."""
    training = Training(clone, request.param, tmp_path_factory.mktemp("kept") / "unharmed")
    made_by_dvc = training.result()
    training.clear()
    assert training.finish() == 0
    assert training.steps_run() == STEPS
    assert training.result() == made_by_dvc
    return request.param, made_by_dvc, training.curves(), training.final_state()


def test_killed_at_a_random_step_and_in_the_write_of_a_checkpoint(clone, unharmed, tmp_path):
    stage, result, curves, state = unharmed
    training = Training(clone, stage, tmp_path / "kept")
    training.clear()
    draw = random.Random(stage)
    first = draw.randrange(EVERY + 1, 2 * EVERY)  # after the first checkpoint, before the second
    training.kill_when(lambda: training.steps_run() >= first)
    assert training.checkpoints("step_*.pt") == [f"step_{EVERY:09d}.pt"]

    training.kill_when(lambda: training.checkpoints("step_*.partial"), hold_in_write=2 * EVERY)
    assert f"resume at step {EVERY} of {STEPS}" in training.said()
    assert training.checkpoints("step_*") == [f"step_{EVERY:09d}.pt", f"step_{2 * EVERY:09d}.partial"]

    second = draw.randrange(EVERY + 1, 2 * EVERY)  # steps after the resume: past the checkpoint that was half written
    training.kill_when(lambda: training.steps_run() >= second)
    assert f"resume at step {EVERY} of {STEPS}" in training.said()
    assert training.checkpoints("step_*.partial") == []

    assert training.finish() == 2 * EVERY
    assert training.steps_run() == STEPS - 2 * EVERY
    assert training.result() == result
    assert_same(training.final_state(), state)
    assert training.curves() == curves


def test_killed_between_the_last_checkpoint_and_the_result(clone, unharmed, tmp_path):
    stage, result, curves, state = unharmed
    training = Training(clone, stage, tmp_path / "kept")
    training.clear()
    training.kill_when((training.keep / "held").exists, hold_after=STEPS)
    training.clear()
    assert training.finish() == STEPS
    assert training.steps_run() == 0
    assert training.result() == result
    assert_same(training.final_state(), state)
    assert training.curves() == curves
