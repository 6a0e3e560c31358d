"""Curves and sheets in MLflow while a stage runs.

`LiveSender` starts a second process of low priority that reads the growing logs/<instance>.jsonl and sends new points,
and the sheets that a training draws (figures/<name>_training*.png) when they appear or change.
A process, not a thread, and of the lowest priority: importing MLflow alone takes seconds of the interpreter and
200 MB, which would slow short trainings and stand in their measured memory. Whatever goes wrong in it, the training
does not notice, and .work/live/<world>.<instance>.log says it; the final `pipeline.tracking sync` replaces the live run
by the whole curve. Until then the live run ends as the stage did, where the store answers within seconds: FINISHED,
FAILED, or KILLED, where it was stopped or is no more; else it stays RUNNING.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pipeline.paths import WORK, World

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.tracking_store import Point

DELAY = 20.0  # seconds before the first sending, so that short stages never pay for it
PERIOD = 10.0  # seconds between sendings
LONGEST_WAIT = 300.0  # seconds between attempts when the store is away
ROUNDED = 0.001  # seconds that rounding may add to a line's time
LAST_WORDS = 5.0  # seconds to say how a stage ended that is no more
KILLED = "KILLED"  # MLflow's word for it
OFF_VARIABLE = "MEDIM_LIVE"  # set to 0: send nothing while stages run


class LiveSender:
    """The sending process of one stage instance. Nothing here raises, whatever the store does."""

    def __init__(self, world: World, instance: str, delay: float = DELAY, period: float = PERIOD) -> None:
        self._command = [
            sys.executable,
            "-m",
            "pipeline.tracking_live",
            str(world.root),
            instance,
            str(delay),
            str(period),
        ]
        self._log = WORK / "live" / f"{world.name}.{instance}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it; where no process can be started one line says so and the stage goes on."""
        if os.environ.get(OFF_VARIABLE) == "0":
            return self
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
                )
        except OSError as error:
            print(f"no live curves in MLflow ({error}); they appear when the stage has ended", file=sys.stderr)
        return self

    def stop(self, state: str, timeout: float = 3.0) -> None:
        """Let it send what is left and how the stage ended, for `timeout` seconds at most, then end it.

        Args:
            state: MLflow's word: FINISHED, FAILED or KILLED.
            timeout: in seconds.
        """
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has failed before
            self._process.stdin.write(state.encode())
            self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Tail:
    """Reads new points of a growing curve file; each point once, also when a resumed training rewrote the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = self._offset = 0
        self._sent: dict[str, int] = {}  # metric key -> last step

    def read(self) -> list[Point]:
        """Points since the last call. A half-written last line waits for the next call."""
        from pipeline.tracking_tables import curve_points

        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._inode, self._offset = stat.st_ino, 0
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        fresh = []
        for point in curve_points(whole.decode("utf-8").splitlines()):
            if point.step > self._sent.get(point.key, -1):
                self._sent[point.key] = point.step
                fresh.append(point)
        return fresh

    def again(self) -> None:
        """Begin at the first line: the store has forgotten what was sent."""
        self._inode, self._offset, self._sent = 0, 0, {}


class Sheets:
    """Says which sheets of a training are new or changed since the last call."""

    def __init__(self, world: World, instance: str) -> None:
        self._world, self._instance = world, instance
        self._sent: dict[Path, int] = {}  # file -> time of change in ns

    def read(self) -> list[Path]:
        """Sheets to send. One that is older than the first line of the curves is an earlier training's."""
        from pipeline.tracking_tables import training_sheets

        begin, fresh = self._begin(), []
        if begin is None:
            return []
        for path in training_sheets(self._world, self._instance):
            try:
                changed = path.stat().st_mtime_ns
            except FileNotFoundError:  # being replaced
                continue
            if changed >= begin and changed != self._sent.get(path):
                self._sent[path] = changed
                fresh.append(path)
        return fresh

    def _begin(self) -> int | None:
        """When the first line of the curves was written, in ns since 1970; None: not yet."""
        try:
            with self._world.logs(self._instance).open("rb") as file:
                line = file.readline()
        except FileNotFoundError:
            return None
        return int(1e9 * (json.loads(line)["time"] - ROUNDED)) if line.endswith(b"\n") else None

    def again(self) -> None:
        """Begin anew: the store has forgotten what was sent."""
        self._sent = {}


class Connection:
    """A live run in MLflow, opened when first needed and again after an error."""

    def __init__(self, world: World, instance: str) -> None:
        self._world, self._instance = world, instance
        self._client: MlflowClient | None = None
        self._run = ""

    def send(self, points: list[Point], sheets: list[Path]) -> None:
        """Send points and sheets to the live run."""
        from pipeline import tracking_store
        from pipeline.tracking_tables import SHEETS

        if self._client is None:
            self._open()
        assert self._client is not None
        tracking_store.send(self._client, self._run, points, {})
        for sheet in sheets:
            self._client.log_artifact(self._run, str(sheet), SHEETS)

    def _open(self) -> None:
        from pipeline.tracking_store import LIVE, group_runs, locked_store, now_ms
        from pipeline.tracking_tables import open_trainings

        with locked_store() as client:
            experiment = open_trainings(client, self._world)
            for run in group_runs(client, experiment, self._instance):
                if run.data.tags.get("content") == LIVE:
                    client.delete_run(run.info.run_id)
            tags = {"group": self._instance, "content": LIVE, "current": "yes", "kind": "training"}
            run = client.create_run(experiment, start_time=now_ms(), run_name=f"{self._instance} (running)", tags=tags)
            self._client, self._run = client, run.info.run_id

    def close(self) -> None:
        """Forget the run; the next `send` opens a new one."""
        self._client = None

    def finish(self, state: str) -> None:
        """Say that nothing more comes, and how the stage ended."""
        if self._client is not None:
            self._client.set_terminated(self._run, status=state)
            self._client.update_run(self._run, name=f"{self._instance} ({state.lower()})")


def follow(
    tail: Tail,
    sheets: Sheets,
    connection: Connection,
    wait: Callable[[float], bool],
    period: float,
    delay: float = 0.0,
    state: Callable[[], str] = lambda: "FINISHED",
) -> int:
    """Send new points and sheets until `wait(seconds)` says that the stage has ended, and then its `state()`.

    Returns how many sendings failed.

    After a failure the pause doubles, up to LONGEST_WAIT, and everything is sent again to a new live run.
    """
    errors, pause = 0, period
    ended = wait(delay)
    while True:
        try:
            points, pictures = tail.read(), sheets.read()
            if points or pictures:
                connection.send(points, pictures)
            if ended:
                connection.finish(state())
            pause = period
        except Exception as error:  # noqa: BLE001 - the store may fail in any way; the training must not care
            errors += 1
            print(f"live curves: {error}", file=sys.stderr)
            connection.close()
            tail.again()
            sheets.again()
            pause = min(2 * pause, LONGEST_WAIT)
        if ended:
            return errors
        ended = wait(pause)


class Ending:
    """Whether and how the stage has ended: it writes that to stdin and closes it; one that is no more wrote nothing."""

    def __init__(self) -> None:
        self.known = threading.Event()
        self.state = KILLED

    def listen(self) -> None:
        """Wait for the end of stdin. Whoever is no more cannot end this process, so it does that itself in the end."""
        self.state = sys.stdin.buffer.read().decode() or KILLED
        self.known.set()
        timer = threading.Timer(LAST_WORDS, os._exit, (1,))
        timer.daemon = True
        timer.start()


def main(argv: list[str]) -> int:
    """The sending process: `python -m pipeline.tracking_live WORLD_ROOT INSTANCE DELAY PERIOD`; ends with its stdin."""
    root, instance, delay, period = Path(argv[0]), argv[1], float(argv[2]), float(argv[3])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # they end the stage, whose end is still to be told
        signal.signal(number, signal.SIG_IGN)
    os.nice(19)
    end = Ending()
    threading.Thread(target=end.listen, daemon=True).start()
    if end.known.wait(delay):
        return 0  # a short stage: the final sync shows it
    world = World(root)
    tail, sheets = Tail(world.logs(instance)), Sheets(world, instance)
    return min(1, follow(tail, sheets, Connection(world, instance), end.known.wait, period, state=lambda: end.state))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the stage waits for this process, and taking MLflow's modules down takes a second
