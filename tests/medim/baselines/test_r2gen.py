"""R2Gen learns a handful of pairs by heart, and its folder writes the same reports."""

import json

import pytest
import torch
from tiny_writers import PROMPT, R2GEN, inputs, pairs

from medim.baselines import get_method
from medim.baselines.r2gen import METHOD, load_system
from medim.system_loading import load_system as load_any


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    given, logs = inputs(tmp_path_factory.mktemp("r2gen"), R2GEN)
    get_method("r2gen").train(given)
    return given, logs


def test_it_learns_pairs_by_heart(trained):
    given, logs = trained
    known = pairs()
    found = load_any(given.out).generate("image_to_report", "d", known, range(len(known)))
    assert [one.report for one in found] == [pair.report for pair in known]
    assert {one.prompt for one in found} == {PROMPT}
    assert {(one.row, one.dataset, one.task) for one in found} == {("R2Gen", "d", "image_to_report")}
    nats = [values["val/d/nats_per_token"] for _, values in logs if "val/d/nats_per_token" in values]
    assert nats[-1] < 0.1


def test_a_report_depends_on_its_picture_alone(trained):
    system, known = load_system(trained[0].out), pairs()
    together = system.generate("image_to_report", "d", known, range(6))
    for n, pair in enumerate(known):
        (alone,) = system.generate("image_to_report", "d", [pair], [77])
        assert alone.report == together[n].report


def test_the_folder_says_how_it_was_made(trained):
    config = json.loads((trained[0].out / "config.json").read_text())
    assert config["system"] == "medim.baselines.r2gen"
    assert config["optim"]["steps"] == 45 and config["writer"]["network"]["slots"] == 3
    assert "<unk>" in config["writer"]["words"]["words"]


def test_it_answers_one_question_only(trained):
    with pytest.raises(ValueError, match="R2Gen answers image_to_report, not 'joint'"):
        load_system(trained[0].out).generate("joint", "all", pairs(), range(6))


def test_settings_that_nothing_reads_are_refused(tmp_path):
    given, _ = inputs(tmp_path, R2GEN, beam=3)
    with pytest.raises(
        ValueError, match=r"params.yaml:train_baseline.settings.r2gen: nothing reads \['beam'\] .*beams"
    ):
        METHOD.train(given)


def test_weights_are_those_of_the_last_step(trained):
    from safetensors.torch import load_file

    weights = load_file(trained[0].out / "model.safetensors")
    last = torch.load(next((trained[0].out.parent / "work/training").glob("step_*.pt")), weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in last["players"]["writer"].items())
