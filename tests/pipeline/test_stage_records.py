"""Curves and costs follow the outputs in place, whatever was tried, failed or undone in between."""

import json
import shutil
from pathlib import Path

import pytest
from test_stage import OUT, kill_in, lines, repository, run_stage  # noqa: F401 - a fixture

from pipeline.paths import World
from pipeline.stage_records import KEPT, bring_back, fingerprint

WORLD, INSTANCE = World(Path("runs/tiny")), "train_medim@medim"


def finish(value: str, settings=None) -> None:
    def body(run):
        run.log(1, {"loss": float(value)})
        run.cost(examples=int(value))
        (run.work / "result").mkdir()
        (run.work / "result/value").write_text(value)

    run_stage(body, settings)


def costs() -> int:
    return json.loads(WORLD.costs(INSTANCE).read_text())["examples"]


def losses() -> list[float]:
    return [line["loss"] for line in lines()]


def test_a_failed_run_costs_no_curves(repository):  # noqa: F811
    finish("1")
    shutil.copytree(OUT, "cache")  # as DVC's cache has it
    shutil.rmtree(OUT)  # DVC removes outputs before it runs a stage
    with pytest.raises(ValueError, match="bad"):
        run_stage(lambda _: (_ for _ in ()).throw(ValueError("bad")), {"steps": 0})
    assert not WORLD.costs(INSTANCE).is_file()
    assert bring_back(WORLD) == []  # nothing is in place, so nothing comes back
    shutil.copytree("cache", OUT)
    assert bring_back(WORLD) == [INSTANCE]
    assert (costs(), losses()) == (1, [1.0])
    assert bring_back(WORLD) == []


def test_changed_and_changed_back(repository):  # noqa: F811
    finish("1")
    shutil.copytree(OUT, "cache")
    finish("2", {"steps": 9})
    assert (costs(), losses()) == (2, [2.0])
    shutil.rmtree(OUT)
    shutil.copytree("cache", OUT)
    assert bring_back(WORLD) == [INSTANCE]
    assert (costs(), losses()) == (1, [1.0])


def test_an_unfinished_attempt_finds_its_curves_again(repository):  # noqa: F811
    finish("1")
    shutil.copytree(OUT, "cache")
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(kill_in(lambda run: run.log(7, {"loss": 7.0})), {"steps": 9})
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree("cache", OUT)
    assert bring_back(WORLD) == [INSTANCE]
    assert losses() == [1.0]

    run_stage(lambda _: None, {"steps": 9})
    assert losses() == [7.0]


def test_a_running_stage_keeps_its_curves(repository):  # noqa: F811
    finish("1")

    def body(run):
        run.log(3, {"loss": 3.0})
        assert bring_back(WORLD) == []  # the old output is still in place
        assert losses() == [3.0]

    run_stage(body, {"steps": 9})


def test_a_second_run_of_the_same_settings_starts_empty(repository):  # noqa: F811
    finish("1")
    finish("1")
    assert losses() == [1.0]


def test_only_the_newest_records_stay(repository):  # noqa: F811
    for number in range(KEPT + 2):
        finish(str(number), {"steps": number})
    assert len(list(WORLD.finished(INSTANCE).iterdir())) == KEPT


def test_fingerprints_tell_contents_and_names_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_bytes(b"1" * (3 << 20))
    first = fingerprint(tmp_path / "a")
    assert first == fingerprint(tmp_path / "a") and fingerprint(tmp_path / "b") is None
    (tmp_path / "a/x").write_bytes(b"1" * (3 << 20) + b"2")
    assert fingerprint(tmp_path / "a") != first
    (tmp_path / "a/x").write_bytes(b"1" * (3 << 20))
    (tmp_path / "a/x").rename(tmp_path / "a/y")
    assert fingerprint(tmp_path / "a") != first
