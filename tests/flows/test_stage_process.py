"""One attempt at a stage: what its lines say, how a failure is judged, and that it can be stopped at any time."""

import sys
import threading
import time
from pathlib import Path

import pytest
from process_trees import wait_until_gone

from flows import stage_process
from flows.slots import Slots, try_lock
from flows.stage_process import Ending, StageFailed, StageLines, StageProcess, classify

FAILED = "ERROR: failed to reproduce 'x': failed to run: stages/python -m stages.x, exited with {}"
BUSY = "ERROR: failed to reproduce 'x': '/r' is busy, it is being blocked by:\n  (PID 7): dvc repro\n\nIf there are no"
TRY = Ending.TRANSIENT


@pytest.mark.parametrize(
    ("code", "tail", "ending"),
    [
        (255, ["Traceback (most recent call last):", "ValueError: wrong", FAILED.format(1)], Ending.BUG),
        (255, ["torch.OutOfMemoryError: CUDA out of memory. Tried to", FAILED.format(1)], Ending.TRANSIENT),
        (255, ["RuntimeError: CUDA error: device-side assert triggered", FAILED.format(1)], Ending.BUG),
        (255, ["RuntimeError: CUDA error: an illegal memory access was", FAILED.format(1)], Ending.BUG),
        (255, ["sqlite3.OperationalError: database is locked", FAILED.format(1)], Ending.TRANSIENT),
        (255, ["mlflow.exceptions.MlflowException: API request to http://h:5000/x failed with timeout exception"], TRY),
        (255, ["(Connection to 10.0.0.1 timed out. (connect timeout=10))", FAILED.format(1)], TRY),
        (255, ["HTTPSConnectionPool(host='h', port=443): Read timed out.", FAILED.format(1)], TRY),
        (255, ["('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))"], TRY),
        (255, ["OSError: [Errno 101] Network is unreachable", FAILED.format(1)], TRY),
        (255, ["503 Server Error: Service Unavailable for url: http://h", FAILED.format(1)], TRY),
        (255, ["API request failed with error code 502 != 200", FAILED.format(1)], TRY),
        (255, ["psycopg.OperationalError: server closed the connection unexpectedly", FAILED.format(1)], TRY),
        (255, ["FATAL:  the database system is starting up", FAILED.format(1)], TRY),
        (255, ["AssertionError: 503 rows, wanted 502; the test timed out", FAILED.format(1)], Ending.BUG),
        (255, ["404 Client Error: Not Found for url: http://h", FAILED.format(1)], Ending.BUG),
        (255, [FAILED.format(75)], Ending.TRANSIENT),
        (255, [FAILED.format(-9)], Ending.TRANSIENT),
        (255, [FAILED.format(-11)], Ending.BUG),
        (255, BUSY.splitlines(), Ending.BUSY),
        (137, ["step 3"], Ending.TRANSIENT),
        (143, ["step 3"], Ending.STOPPED),
        (124, ["supervise: 60 s are over, python was ended"], Ending.TIMED_OUT),
    ],
)
def test_a_failure_is_judged_by_what_dvc_says(code, tail, ending):
    assert classify(code, tail) is ending
    assert StageFailed("x", code, tail).ending is ending


def test_lines_are_told_and_of_a_progress_bar_one_state_a_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(stage_process.time, "monotonic", lambda: clock[0])
    said = []
    lines = StageLines(said.append)
    for seconds, piece in (
        (0, b"one\ntw"),
        (1, b"o\n\n"),
        (2, b"\r 10%"),
        (70, b"\r 20%\r 30%"),
        (71, b"\r 40%\r100%\nend"),
    ):
        clock[0] = seconds
        lines.add(piece)
    lines.end()
    assert said == ["one", "two", " 20%", "100%", "end"]
    assert lines.tail == said


def test_the_tail_is_short():
    lines = StageLines(lambda _: None)
    lines.add(b"".join(b"%d\n" % number for number in range(1000)))
    assert lines.tail == [str(number) for number in range(980, 1000)]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function (code) -> an attempt whose `dvc` is that Python code."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))

    def make(code, seconds=60.0, devices=()):
        monkeypatch.setattr(stage_process, "DVC", (sys.executable, "-c", code))
        slot = Slots(list(devices), tmp_path).take() if devices else None
        return StageProcess("train@x", try_lock(tmp_path / "train@x.lock"), slot, seconds)

    return make


def test_a_finished_attempt_frees_its_locks(make, tmp_path):
    said = []
    attempt = make("import os, sys; print(sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES'])", devices=["GPU-7"])
    attempt.run(said.append)
    assert said == ["['repro', '--single-item', 'train@x'] GPU-7"]
    assert attempt.finished and attempt.failure is None
    assert try_lock(tmp_path / "train@x.lock") and Slots(["GPU-7"], tmp_path).take()


def test_a_failed_attempt_says_why(make):
    attempt = make("import sys; print('step 1'); sys.exit('no such file: y')")
    with pytest.raises(StageFailed, match="train@x ended with 1; its last lines:\nstep 1\nno such file: y"):
        attempt.run(lambda _: None)
    assert not attempt.finished and attempt.failure.ending is Ending.BUG


def test_an_attempt_has_its_time(make):
    attempt = make("import time; time.sleep(60)", seconds=1)
    with pytest.raises(StageFailed):
        attempt.run(lambda _: None)
    assert attempt.failure.ending is Ending.TIMED_OUT


def test_an_attempt_is_stopped_while_it_runs(make):
    attempt, said = make("import time; print('begun', flush=True); time.sleep(60)"), []
    threading.Timer(0.5, attempt.stop).start()
    begun = time.monotonic()
    with pytest.raises(StageFailed):
        attempt.run(said.append)
    assert attempt.failure.ending is Ending.STOPPED and time.monotonic() - begun < 10


def test_an_attempt_that_was_stopped_before_does_not_begin(make, tmp_path):
    attempt = make(f"open({str(tmp_path / 'begun')!r}, 'w')")
    attempt.stop()
    with pytest.raises(StageFailed, match="stopped before it began"):
        attempt.run(lambda _: None)
    assert not (tmp_path / "begun").exists()


def test_an_attempt_ends_where_its_lines_can_no_longer_be_told(make, tmp_path):
    """As in a flow whose worker, which read what it printed, is gone."""

    def say(_):
        raise SystemExit(1)

    file = tmp_path / "pid"
    code = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); print(1, flush=True); time.sleep(60)"
    attempt = make(code)
    with pytest.raises(SystemExit):
        attempt.run(say)
    wait_until_gone([int(file.read_text())], 8)
    assert isinstance(attempt.failure, SystemExit)
