"""Curves and scores of training budgets: the numbers of the files, each under its row, the same bytes each time."""

from __future__ import annotations

import json

import pytest

from benchmarks.training_budget import read_budget, write
from pipeline.paths import World


def lay(world: World, model: str, steps: int, f1: float, stage: str = "train_medim") -> None:
    """A row of `steps` steps of 16, validated half-way and at the end."""
    score = {"value": f1, "low": f1, "high": f1, "n": 9}
    lines = [
        {"step": step, "val/phantom_cxr/image_to_report": 10 / step, "val/phantom_cxr/own_picture_saves": float(step),
         "val/phantom_cxr/joint": 1.0, "val/phantom_pathology/own_picture_saves": 2.0 * step}
        for step in (steps // 2, steps)
    ]  # fmt: skip
    files = {
        world.logs(f"{stage}@{model}"): "".join(
            json.dumps(line) + "\n" for line in [{"step": 1, "medim/loss": 2.0}, *lines]
        ),
        world.costs(f"{stage}@{model}"): json.dumps({"examples": steps * 16, "seconds": 60.0 * steps}),
        world.metrics(model): json.dumps({"rows": {"MeDiM": {"phantom_cxr/image_to_report/finding_f1": score}}}),
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "runs/small")
    lay(world, "medim", 100, 0.5)
    lay(world, "medim_3x", 300, 0.75)
    return world


def test_curves_stand_at_the_samples_that_were_seen(world):
    budget = read_budget(world, "medim_3x")
    assert budget.samples == 4800 and budget.datasets() == ["phantom_cxr", "phantom_pathology"]
    assert budget.curves["val/phantom_pathology/own_picture_saves"] == [(2400, 300.0), (4800, 600.0)]
    assert "val/phantom_cxr/joint" not in budget.curves


def test_both_budgets_stand_beside_each_other_and_the_files_are_the_same_again(world, tmp_path):
    out = tmp_path / "out"
    text = write(world, ["medim", "medim_3x"], out)
    assert "medim: 1,600 samples, 100.0 min | medim_3x: 4,800 samples, 300.0 min" in text
    assert "| phantom_cxr/image_to_report/finding_f1 | 0.500 (0.500–0.500) | 0.750 (0.750–0.750) |" in text
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"training_budget.json", "training_budget.png"}
    page = json.loads(first["training_budget.json"])
    assert page["models"]["medim"]["curves"]["val/phantom_cxr/own_picture_saves"] == [[800, 50.0], [1600, 100.0]]
    write(world, ["medim", "medim_3x"], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_a_baseline_and_its_longer_training_in_another_folder(world, tmp_path):
    three = World(tmp_path / "three/runs/small")
    for place, steps in ((world, 100), (three, 300)):
        lay(place, "r2gen", steps, steps / 1000, "train_baseline")
        log = place.logs("train_baseline@r2gen")
        prior = json.dumps({"step": 900, "pretraining/val/phantom_cxr/own_picture_saves": 9.0}) + "\n"
        log.write_text(prior + log.read_text().replace("own_picture_saves", "nats_per_token"))
    text = write(world, ["r2gen", f"{three.root}/r2gen"], tmp_path / "out", "r2gen")
    assert "r2gen: 1,600 samples" in text and "r2gen: 4,800 samples" in text
    page = json.loads((tmp_path / "out/r2gen.json").read_text())
    curves = page["models"][f"{three.root}/r2gen"]["curves"]
    assert curves["val/phantom_cxr/nats_per_token"] == [[2400, 150.0], [4800, 300.0]]
    assert (tmp_path / "out/r2gen.png").is_file()


def test_what_is_missing_is_named_with_its_command(world):
    with pytest.raises(FileNotFoundError, match=r"train_medim@other.jsonl is missing: .*dvc repro train_medim@other"):
        read_budget(world, "other")
    world.metrics("medim").unlink()
    with pytest.raises(FileNotFoundError, match=r"medim.json is missing: .*dvc repro evaluate@medim"):
        read_budget(world, "medim")
    world.logs("train_medim@medim_3x").write_text('{"step": 1, "medim/loss": 2.0}\n')
    with pytest.raises(ValueError, match="holds no validation"):
        read_budget(world, "medim_3x")
