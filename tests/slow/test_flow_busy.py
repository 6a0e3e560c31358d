"""What DVC itself says while one of its processes holds a path, and how a flow waits for it."""

import json
import os

import pytest

from benchmarks.small_flow import STAGES, SmallFlow
from flows.stages_to_run import stale_stages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_busy_dvc_is_waited_for_and_then_says_what_is_stale(tmp_path, monkeypatch):
    small = SmallFlow(tmp_path / "small")
    monkeypatch.chdir(small.folder)
    path = str((small.folder / "runs/small/models/one").resolve())
    lock = small.folder / ".dvc/tmp/rwlock"  # as a running `dvc repro -s train_downstream@one` writes it
    holder = {"pid": os.getpid(), "cmd": "dvc repro -s train_downstream@one"}
    lock.write_text(json.dumps({"write": {path: holder}, "read": {}}))
    said = []

    def say(text):
        said.append(text)
        lock.write_text("{}")

    assert stale_stages(200, say) == STAGES
    assert said == [f"waiting: DVC is busy with (PID {os.getpid()}): dvc repro -s train_downstream@one"]
