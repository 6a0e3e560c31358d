"""How long a stage took and how much memory it held, over all its attempts, killed ones included."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PERIOD = 5.0  # seconds between writes: at most this much of a killed attempt goes uncounted


class StageClock:
    """Counts seconds and peak memory from entering on, on top of what `path` says of earlier attempts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = {"seconds": 0.0, "peak_bytes": 0.0}
        if path.is_file():
            self._before = json.loads(path.read_text(encoding="utf-8"))
        self._stop = threading.Event()
        self._started = self._ended = 0.0

    def seconds(self) -> float:
        """Seconds so far, earlier attempts included; stands still after leaving."""
        return float(self._before["seconds"]) + (self._ended or time.monotonic()) - self._started

    def peak_bytes(self) -> int:
        """Largest resident memory of one process: this one, a worker of it that has ended, or an earlier attempt's."""
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there and KiB elsewhere
        largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return max(int(self._before["peak_bytes"]), largest * unit)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="stage clock", daemon=True)
        self._thread.start()
        return self

    def _beat(self) -> None:
        while not self._stop.wait(PERIOD):
            self._write()

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"seconds": self.seconds(), "peak_bytes": self.peak_bytes()}), encoding="utf-8")
        os.replace(partial, self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._ended = time.monotonic()
        self._write()
