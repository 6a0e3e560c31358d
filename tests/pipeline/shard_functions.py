"""What the workers of test_shards.py do; they import it by name."""

import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def make_squares(*, width: int, pause: float = 0.0, pids: str | None = None):
    """Squares of the column `number`, in row groups of `width`; a row of -1 kills the process that reads it."""

    def squares(source: Path, target: Path, *, start: int = 0, stop: int | None = None, marker: str | None = None):
        if pids is not None:
            (Path(pids) / str(os.getpid())).touch()
        if marker is not None and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        table = pq.read_table(source).slice(start, None if stop is None else stop - start)
        with pq.ParquetWriter(target, pa.schema([("square", pa.int64())]), compression="zstd") as writer:
            for batch in table.to_batches(width):
                numbers = batch["number"].to_pylist()
                if -1 in numbers:
                    os.kill(os.getpid(), signal.SIGKILL)
                writer.write_table(pa.table({"square": pa.array([n * n for n in numbers], pa.int64())}))
                time.sleep(pause)
        return {"rows": len(table), "odd": sum(n % 2 for n in table["number"].to_pylist())}

    return squares


def make_nothing():
    """Writes no file."""
    return lambda source, target: {}


def make_broken():
    """Cannot be set up."""
    raise FileNotFoundError("models/vqgan is missing: run `dvc repro train_vqgan`")
