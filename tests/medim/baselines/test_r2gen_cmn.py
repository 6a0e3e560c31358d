"""R2GenCMN learns a handful of pairs by heart, and its folder writes the same reports."""

import json

import pytest
from tiny_writers import CMN, PROMPT, inputs, pairs

from medim.baselines import get_method
from medim.baselines.r2gen_cmn import load_system
from medim.system_loading import load_system as load_any


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    given, _ = inputs(tmp_path_factory.mktemp("r2gen_cmn"), CMN)
    get_method("r2gen_cmn").train(given)
    return given


def test_it_learns_pairs_by_heart(trained):
    known = pairs()
    found = load_any(trained.out).generate("image_to_report", "d", known, range(len(known)))
    assert [one.report for one in found] == [pair.report for pair in known]
    assert {(one.row, one.prompt) for one in found} == {("R2GenCMN", PROMPT)}


def test_a_report_depends_on_its_picture_alone(trained):
    system, known = load_system(trained.out), pairs()
    together = system.generate("image_to_report", "d", known, range(6))
    alone = [system.generate("image_to_report", "d", [pair], [7])[0] for pair in known]
    assert [one.report for one in alone] == [one.report for one in together]


def test_the_folder_says_how_it_was_made(trained):
    config = json.loads((trained.out / "config.json").read_text())
    assert config["system"] == "medim.baselines.r2gen_cmn"
    assert config["writer"]["network"]["top"] == 4
