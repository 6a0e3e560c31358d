"""Under torchrun the first process is the stage, and the others write nothing."""

from pathlib import Path

import pytest

from pipeline.stage_processes import Follower, shared_stage_run

OUT = Path("runs/tiny/models/medim")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDIM_LIVE", "0")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path("params.yaml").write_text("profile: tiny\nworld: tiny\nseed: 3\nthreads: 1\ntrain_medim: {steps: 5}\n")
    Path("code").mkdir()
    Path("code/train_medim@medim.txt").write_text("hash\n")
    return tmp_path


def run():
    with shared_stage_run("train_medim", "medim", section={"steps": 5}, inputs=[], outputs=[OUT]) as stage:
        stage.log(1, {"loss": 2.0})
        stage.cost(examples=3)
        if not isinstance(stage, Follower):
            (stage.work / "result").mkdir()
        stage.place(stage.work / "result", OUT)
    return stage


def test_the_first_process_is_the_stage(repository, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    run()
    assert OUT.is_dir() and Path("runs/tiny/costs/train_medim@medim.json").is_file()


def test_the_others_take_no_lock_and_write_nothing(repository, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    before = sorted(repository.rglob("*"))
    stage = run()
    assert isinstance(stage, Follower) and (stage.seed, stage.threads) == (3, 1)
    assert sorted(repository.rglob("*")) == before


def test_without_torchrun_it_is_the_stage(repository, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not isinstance(run(), Follower) and OUT.is_dir()
