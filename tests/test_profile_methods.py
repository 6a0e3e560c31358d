"""Settings of every method in every profile are what the method reads: wrong ones would be found hours into a run."""

from importlib import import_module
from pathlib import Path

import pytest

from medim.baselines import METHODS, get_method
from medim.baselines.method_settings import read_settings
from medim.downstream import study_settings
from pipeline.params_file import parse_yaml
from pipeline.profile import profiles, render

FOLDER = Path(__file__).parents[1] / "profiles"
PARAMS = {name: parse_yaml(render(name, FOLDER), name) for name in profiles(FOLDER)}
SCHEMAS = {
    "unidisc": "UniDiscTraining", "r2gen": "R2GenSettings", "r2gen_cmn": "R2GenCMNSettings", "bllm": "BllmSettings",
    "blip": "BlipSettings", "llava_rad": "LlavaRadSettings",
}  # fmt: skip

per_profile = pytest.mark.parametrize("profile", PARAMS)


def read(method, settings):
    schema = getattr(import_module(f"medim.baselines.{method}"), SCHEMAS[method])
    return read_settings(schema, settings, method)


def test_every_method_is_looked_at():
    assert {*SCHEMAS, "trivial"} == set(METHODS)


@per_profile
def test_methods_read_their_settings(profile):
    baselines = PARAMS[profile]["train_baseline"]
    for method in set(baselines["settings"]) - {"trivial"}:
        read(method, baselines["settings"][method])
    assert set(baselines["settings"]["trivial"]) == {"fallback"}
    assert [get_method(method).key for method in baselines["methods"]] == baselines["methods"]


@per_profile
def test_arms_of_the_downstream_study_read_theirs_and_train_as_long_as_each_other(profile):
    params = PARAMS[profile]
    study = params["train_downstream"]
    usual = params["train_baseline"]["settings"]
    found = {one: read(one, study_settings(usual[one], study["changes"][one], one)) for one in study["methods"]}
    assert len({settings.optim.steps * settings.optim.batch_size for settings in found.values()}) <= 1


@per_profile
def test_pictures_reach_a_writer_at_their_size(profile):
    """Towers scale pictures to their own size; where it is smaller, a row would see less than the others."""
    params = PARAMS[profile]
    for method in params["train_baseline"]["methods"]:
        network = params["train_baseline"]["settings"][method].get("network", {})
        if "vision" in network:
            assert network["vision"]["image_size"] == params["prepare_data"]["image_size"], method
