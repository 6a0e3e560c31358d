"""What the workers of test_shards.py do; they import it by name.

Numbers stand one a line, or in a Parquet file's column `number`; pyarrow, which takes a worker a second to import, is
loaded for the latter only.
"""

import os
import signal
import time
from pathlib import Path


def read_numbers(path: Path, start: int = 0, stop: int | None = None) -> list[int]:
    if path.suffix != ".parquet":
        return [int(line) for line in path.read_text().splitlines()][start:stop]
    import pyarrow.parquet as pq

    return pq.read_table(path)["number"].to_pylist()[start:stop]


def make_squares(*, pause: float = 0.0, pids: str | None = None):
    """Squares of the numbers; a -1 kills the process that reads it."""

    def squares(source: Path, target: Path, *, start: int = 0, stop: int | None = None, marker: str | None = None):
        if pids is not None:
            (Path(pids) / str(os.getpid())).touch()
        if marker is not None and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        numbers = read_numbers(source, start, stop)
        with target.open("w") as file:
            for number in numbers:
                if number == -1:
                    os.kill(os.getpid(), signal.SIGKILL)
                file.write(f"{number * number}\n")
        time.sleep(pause)
        return {"rows": len(numbers), "odd": sum(number % 2 for number in numbers)}

    return squares


def make_nothing():
    """Writes no file."""
    return lambda source, target: {}


def make_broken():
    """Cannot be set up."""
    raise FileNotFoundError("models/vqgan is missing: run `dvc repro train_vqgan`")
