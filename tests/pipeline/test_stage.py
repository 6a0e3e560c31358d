"""A stage survives being killed, runs once at a time, and leaves its result, costs and curves in place."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.paths import World
from pipeline.stage import content_hash, stage_run

ROOT = Path(__file__).parents[2]
PARAMS = "profile: tiny\nworld: tiny\nseed: 3\nthreads: 1\ntrain_medim: {steps: 5}\n"
OUT = Path("runs/tiny/models/medim")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDIM_LIVE", "0")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path("params.yaml").write_text(PARAMS)
    Path("code").mkdir()
    Path("code/train_medim@medim.txt").write_text("hash\n")
    Path("input").mkdir()
    Path("input/a.parquet").write_bytes(b"pairs")
    return tmp_path


def run_stage(body=lambda run: None, section=None, outputs=(OUT,), instance="medim"):
    with stage_run(
        "train_medim",
        instance,
        section=section or {"steps": 5},
        inputs=[Path("input")],
        outputs=outputs,
        use_torch=False,
    ) as run:
        body(run)
        result = run.work / "result"
        result.mkdir(exist_ok=True)
        (result / "model.safetensors").write_bytes(b"weights")
        run.place(result, OUT)


def lines(instance="train_medim@medim"):
    return [json.loads(line) for line in World(Path("runs/tiny")).logs(instance).read_text().splitlines()]


def kill_in(body):
    """A body that checkpoints and then fails, as a killed process would."""

    def fail(run):
        (run.work / "step_000000002.pt").write_bytes(b"checkpoint")
        body(run)
        raise RuntimeError("killed")

    return fail


def test_a_finished_stage_leaves_result_costs_and_curves_and_no_work(repository, capsys):
    def body(run):
        run.log(1, {"loss": 2.0})
        run.log(2, {"loss": float("nan")})
        run.cost(examples=10, parameters=7)
        time.sleep(0.02)

    run_stage(body)
    assert (OUT / "model.safetensors").read_bytes() == b"weights"
    costs = json.loads(Path("runs/tiny/costs/train_medim@medim.json").read_text())
    assert (costs["instance"], costs["examples"], costs["parameters"]) == ("train_medim@medim", 10, 7)
    assert costs["peak_bytes"] > 10_000_000
    assert 0.02 <= costs["seconds"] < 10
    assert (costs["params"], costs["seed"], costs["threads"], costs["code"]) == ({"steps": 5}, 3, 1, "hash")
    assert [(line["step"], line["loss"]) for line in lines()] == [(1, 2.0), (2, None)]
    assert (OUT / "curves.csv").read_text() == "step,loss\n1,2.0\n2,\n"
    assert [path.name for path in Path(".work/train_medim").iterdir()] == ["tiny.train_medim@medim.lock"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"train_medim@medim: input -> {OUT} (world tiny, 1 threads)"
    assert said[1].startswith("train_medim@medim: done in 0.0 min")


def test_a_killed_stage_goes_on_with_its_work_curves_and_seconds(repository, capsys):
    def before(run):
        for step in (1, 2, 3):
            run.log(step, {"loss": float(step)})
        run.log(2, {"val/loss": 9.0})
        time.sleep(0.2)

    with pytest.raises(RuntimeError, match="killed"):
        run_stage(kill_in(before))
    assert "the same command goes on from .work/train_medim/" in capsys.readouterr().err

    def after(run):
        assert (run.work / "step_000000002.pt").read_bytes() == b"checkpoint"
        run.log(3, {"loss": 30.0})
        run.log(4, {"loss": 40.0, "val/loss": 8.0})

    run_stage(after)
    assert [(line["step"], line.get("loss"), line.get("val/loss")) for line in lines()] == [
        (1, 1.0, None), (2, 2.0, None), (2, None, 9.0), (3, 30.0, None), (4, 40.0, 8.0),
    ]  # fmt: skip
    assert (OUT / "curves.csv").read_text() == "step,loss\n1,1.0\n2,2.0\n3,30.0\n4,40.0\n"
    assert (OUT / "val_curves.csv").read_text() == "step,val/loss\n2,9.0\n4,8.0\n"
    assert json.loads(Path("runs/tiny/costs/train_medim@medim.json").read_text())["seconds"] > 0.2


def test_resume_log_removes_what_came_after_the_checkpoint(repository):
    def body(run):
        for step in (1, 2, 3):
            run.log(step, {"loss": 0.0})
        with Path("runs/tiny/logs/train_medim@medim.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')  # a kill in the middle of a write
        run.resume_log(2)

    run_stage(body)
    assert [line["step"] for line in lines()] == [1, 2]


@pytest.mark.parametrize("change", ["section", "input", "code", "seed"])
def test_another_setting_never_finds_the_checkpoint_and_clears_it_at_the_end(repository, change):
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(kill_in(lambda run: run.log(1, {"loss": 1.0})))
    if change == "input":
        Path("input/a.parquet").write_bytes(b"other")
    if change == "code":
        Path("code/train_medim@medim.txt").write_text("other\n")
    if change == "seed":
        Path("params.yaml").write_text(PARAMS.replace("seed: 3", "seed: 4"))

    def body(run):
        assert not list(run.work.glob("*.pt"))
        run.log(5, {"loss": 5.0})

    run_stage(body, {"steps": 6} if change == "section" else None)
    assert [line["step"] for line in lines()] == [5]
    assert not list(Path(".work").rglob("*.pt"))


def test_work_of_other_instances_and_worlds_stays(repository):
    Path("code/train_medim@other.txt").write_text("hash\n")
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(kill_in(lambda run: None), instance="other")
    Path("params.yaml").write_text(PARAMS.replace("world: tiny", "world: big"))
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(kill_in(lambda run: None))
    Path("params.yaml").write_text(PARAMS)
    run_stage()
    assert len(list(Path(".work").rglob("*.pt"))) == 2


def test_place_replaces_files_and_folders(repository):
    def body(run):
        for kind in ("file", "folder", "file", "folder", "folder"):
            new = run.work / "new"
            if kind == "file":
                new.write_text(kind)
            else:
                new.mkdir()
                (new / "x").write_text(kind)
            run.place(new, Path("runs/dst"))
            assert not new.exists()
            assert Path("runs/dst").is_file() == (kind == "file")
        with pytest.raises(FileNotFoundError, match="new is missing"):
            run.place(run.work / "new", Path("runs/dst"))

    run_stage(body)


def test_errors(repository):
    with pytest.raises(FileNotFoundError, match=r"without writing runs/tiny/nothing"):
        run_stage(outputs=[OUT, Path("runs/tiny/nothing")])
    with pytest.raises(ValueError, match="may not be called 'step'"):
        run_stage(lambda run: run.log(1, {"step": 1.0}))
    Path("code/train_medim@medim.txt").unlink()
    with pytest.raises(FileNotFoundError, match="dvc repro hash_code"):
        run_stage()
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing: run `dvc repro`"):
        content_hash(Path("nowhere"))


SCRIPT = """
import sys, time
from pathlib import Path
from pipeline.stage import stage_run
out = Path("runs/tiny/models/medim")
with stage_run("train_medim", "medim", section={"steps": 5}, inputs=[], outputs=[out], use_torch=False) as run:
    state = run.work / "state"
    start = int(state.read_text()) if state.exists() else 0
    for step in range(start + 1, 6):
        state.write_text(str(step))
        run.log(step, {"loss": 1 / step})
        print("at", step, flush=True)
        if len(sys.argv) > 1 and step == 3:
            time.sleep(60)
    state.rename(run.work / "model")
    run.place(run.work / "model", out)
"""


def start(*args, **env):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    )  # fmt: skip
    if args:
        while "at 3" not in (line := process.stdout.readline()):
            assert line, "the stage ended early"
    return process


def test_a_second_process_is_refused_and_a_killed_one_is_continued(repository):
    first = start("wait")
    try:
        second = start()
        said = second.communicate(timeout=20)[0]
        assert second.returncode == 1
        assert f"process {first.pid} is at it already" in said
    finally:
        first.kill()
        first.wait()
    third = start()
    said = third.communicate(timeout=20)[0]
    assert third.returncode == 0, said
    assert "at 3" not in said
    assert "at 4" in said
    assert [line["step"] for line in lines()] == [1, 2, 3, 4, 5]


def test_one_that_only_looks_whether_a_stage_runs_does_not_end_it(repository):
    path = Path(".work/train_medim/tiny.train_medim@medim.lock")
    path.parent.mkdir(parents=True)
    with path.open("a+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        run_stage()
    assert (OUT / "model.safetensors").is_file()


def test_sigterm_ends_with_143_and_says_how_to_go_on(repository):
    process = start("wait")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 143
    assert "the same command goes on from" in said


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_dvc_leaves_no_orphan(repository):
    outer = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1], 'wait']);"
        "open('pid', 'w').write(str(p.pid)); p.wait()"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "train_medim@medim"}
    dvc = subprocess.Popen([sys.executable, "-c", outer, SCRIPT], stdout=subprocess.PIPE, text=True, env=env)
    while "at 3" not in (line := dvc.stdout.readline()):
        assert line, "the stage ended early"
    stage = int(Path("pid").read_text())
    dvc.kill()
    dvc.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(stage):
        time.sleep(0.05)
    assert not _alive(stage)


def _alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
