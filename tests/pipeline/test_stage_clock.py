"""Time and memory of a stage over its attempts."""

import json
import subprocess
import sys

from pipeline.stage_clock import StageClock


def test_memory_of_workers_counts_and_of_earlier_attempts(tmp_path):
    path = tmp_path / "clock.json"
    with StageClock(path) as clock:
        subprocess.run([sys.executable, "-c", "b'x' * 400_000_000"], check=True)
    assert clock.peak_bytes() > 400_000_000
    path.write_text(json.dumps({"seconds": 100.0, "peak_bytes": 5 * 10**9}))
    with StageClock(path) as again:
        pass
    assert again.peak_bytes() == 5 * 10**9 and 100 <= again.seconds() < 110
