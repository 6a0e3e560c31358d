"""Stands for `dvc` where a test needs many runs: does what behaviour.json of this folder says, and notes it.

`python fake_dvc.py repro --single-item STAGE`; behaviour: {STAGE: [one entry a run]}, an entry is {"seconds", "code",
"say"}; the last entry stands for all further runs.
"""

import json
import os
import sys
import time
from pathlib import Path

stage = sys.argv[-1]
notes = Path("notes.jsonl")
before = [json.loads(line)["stage"] for line in notes.read_text().splitlines()] if notes.is_file() else []
runs = json.loads(Path("behaviour.json").read_text()).get(stage, [{}])
mine = runs[min(before.count(stage), len(runs) - 1)]


def note(what):
    with notes.open("a") as file:
        line = {"stage": stage, "what": what, "time": time.time(), "device": os.environ.get("CUDA_VISIBLE_DEVICES")}
        file.write(json.dumps(line) + "\n")


note("start")
print(f"Running stage '{stage}':", flush=True)
time.sleep(mine.get("seconds", 0))
print(mine.get("say", "fine"), flush=True)
with Path("ends.jsonl").open("a") as ends:
    ends.write(json.dumps({"stage": stage, "time": time.time()}) + "\n")
sys.exit(mine.get("code", 0))
