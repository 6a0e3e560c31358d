"""A supervised command leaves nothing behind, whatever ends it: real trees of processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from process_trees import lives, pids, wait_for, wait_until_gone

from flows.supervise import STOPPED, TIMED_OUT

# A tree as a stage may have one: a child, a child in a session of its own; all deaf to SIGTERM where asked for.
TREE = """
    import os, signal, subprocess, sys, time
    folder, deaf = sys.argv[1], "deaf" in sys.argv
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(f"{folder}/top", "w").write(str(os.getpid()))
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"
    sleep = [sys.executable, "-c", code]
    subprocess.Popen([*sleep, f"{folder}/child"])
    subprocess.Popen([*sleep, f"{folder}/session"], start_new_session=True)
    time.sleep(300)
"""


@pytest.fixture
def tree(tmp_path):
    file = tmp_path / "tree.py"
    file.write_text(textwrap.dedent(TREE))
    (tmp_path / "pids").mkdir()
    return [sys.executable, str(file), str(tmp_path / "pids")]


def supervised(command, *options, **more):
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen([sys.executable, "-m", "flows.supervise", *options, "--", *command], env=env, **more)


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7)])
def test_the_exit_code_is_the_commands(code, expected):
    assert supervised([sys.executable, "-c", code]).wait(20) == expected


def test_a_command_that_a_signal_ended():
    assert supervised(["/bin/sh", "-c", "kill -9 $$"]).wait(20) == 128 + signal.SIGKILL


def test_arguments_of_the_command_are_its_own():
    said = supervised(["/bin/echo", "--seconds", "7", "--"], stdout=subprocess.PIPE).communicate(timeout=20)[0]
    assert said == b"--seconds 7 --\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_whole_tree(tree, tmp_path, number):
    process = supervised(tree)
    family = pids(tmp_path / "pids", 3)
    process.send_signal(number)
    assert process.wait(10) == STOPPED
    assert not any(map(lives, family))


def test_what_ignores_the_end_is_killed(tree, tmp_path):
    code = "import sys; from flows import supervise as s; s.GRACE = 1.5; sys.exit(s.main(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, "-c", code, "--", *tree, "deaf"], env=env)
    family = pids(tmp_path / "pids", 3)
    begun = time.monotonic()
    process.terminate()
    assert process.wait(10) == STOPPED
    assert time.monotonic() - begun > 1.4
    assert not any(map(lives, family))


def test_the_time_is_over(tree, tmp_path):
    process = supervised(tree, "--seconds", "1", stderr=subprocess.PIPE, text=True)
    family = pids(tmp_path / "pids", 3)
    assert process.communicate(timeout=15)[1] == f"supervise: 1 s are over, {sys.executable} was ended\n"
    assert process.returncode == TIMED_OUT
    assert not any(map(lives, family))


def test_the_caller_is_killed(tree, tmp_path):
    caller = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])",
         sys.executable, "-m", "flows.supervise", "--", *tree], env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    family = pids(tmp_path / "pids", 3)
    caller.kill()
    caller.wait()
    wait_until_gone(family, 8)


def test_a_caller_that_was_gone_before_is_noticed_before_anything_starts(tmp_path):
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    process = supervised(["/bin/sh", "-c", f"echo > {tmp_path}/begun"], "--parent", str(dead.pid))
    assert process.wait(15) == STOPPED
    assert not (tmp_path / "begun").exists()
    assert supervised(["/bin/true"], "--parent", str(os.getpid())).wait(15) == 0


def test_the_supervisor_is_killed(tmp_path):
    """Then the command itself gets SIGTERM from Linux."""
    process = supervised(["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 300"])
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), 10, "the command's start")
    process.kill()
    process.wait()
    wait_until_gone([int((tmp_path / "pid").read_text())], 5)


def test_a_finished_command_leaves_no_background_process(tmp_path):
    process = supervised(["/bin/sh", "-c", f"sleep 300 & echo $! > {tmp_path}/pid; exit 3"])
    assert process.wait(15) == 3
    assert not lives(int((tmp_path / "pid").read_text()))
