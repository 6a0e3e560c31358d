"""A profile is phantom.yaml with an overlay."""

from pathlib import Path

import pytest

from pipeline.params_file import ParamsError, parse_yaml
from pipeline.profile import profiles, render, write_profile

PHANTOM = """\
# The parameters of every stage.
profile: phantom
world: phantom
seed: 0
threads: 2  # of torch

prepare_data:  # the pairs
  size: 64  # pixels
  datasets:
    phantom_cxr: {train: 100, val: 10}   # pairs
    drawings: {train: 5, val: 1}
# Main model
train_medim:
  methods: [a, b, c]  # rows
  optim:
    lr: 1e-3   # peak, paper Sec. 4.1
    steps: 100  # optimiser steps
  variants:
    medim: {plan: true}
    no_plan: {plan: false}
  betas:
    - 0.9   # first
    - 0.99
  last: 'x: y'
"""
TINY = """\
# the whole graph, small
profile: tiny
world: tiny
prepare_data: {size: 32, datasets: {phantom_pathology: {train: 4, val: 1}}}
train_medim:
  methods: [a]
  optim: {steps: 3}  # enough to see it run
  betas: [0.5, 0.6]
  variants: !replace
    medim: {plan: true, new: 1}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "phantom.yaml").write_text(PHANTOM)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def test_phantom_is_copied_byte_for_byte(folder):
    write_profile("phantom", folder / "params.out", folder)
    assert (folder / "params.out").read_text() == PHANTOM


def test_an_overlay_merges_replaces_and_keeps_comments(folder):
    text = render("tiny", folder)
    assert parse_yaml(text, "tiny") == {
        "profile": "tiny", "world": "tiny", "seed": 0, "threads": 2,
        "prepare_data": {
            "size": 32,
            "datasets": {"phantom_cxr": {"train": 100, "val": 10}, "drawings": {"train": 5, "val": 1},
                         "phantom_pathology": {"train": 4, "val": 1}},
        },
        "train_medim": {
            "methods": ["a"], "optim": {"lr": 1e-3, "steps": 3}, "variants": {"medim": {"plan": True, "new": 1}},
            "betas": [0.5, 0.6], "last": "x: y",
        },
    }  # fmt: skip
    for comment in (
        "# of torch",
        "# the pairs",
        "# pixels",
        "# Main model",
        "# peak, paper Sec. 4.1",
        "# optimiser steps",
    ):
        assert text.count(comment) == 1, comment
    assert "!replace" not in text
    assert "lr: 1e-3" in text
    assert text.endswith("\n")


def test_the_same_profile_gives_the_same_bytes_and_a_second_pass_changes_nothing(folder):
    assert render("tiny", folder) == render("tiny", folder)


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("train_medim: {step: 3}", r"phantom\.yaml has no train_medim\.step"),
        ("train_medim: {optim: {step: 3}}", r"no train_medim\.optim\.step \(did you mean 'steps'\?\)"),
        ("train_medm: {}", r"no train_medm \(did you mean 'train_medim'\?\)"),
        ("train_medim: 3", "train_medim is a mapping in one file and a value in the other"),
        ("seed: {a: 1}", "seed is a mapping in one file and a value in the other"),
    ],
)
def test_unknown_keys_are_errors(folder, overlay, message):
    (folder / "bad.yaml").write_text(f"profile: bad\n{overlay}\n")
    with pytest.raises(ParamsError, match=message):
        render("bad", folder)


def test_other_errors(folder):
    with pytest.raises(ParamsError, match=r"no profile 'tyni'.*did you mean 'tiny'.*there are phantom, tiny"):
        render("tyni", folder)
    (folder / "wrong.yaml").write_text("profile: tiny\n")
    with pytest.raises(ParamsError, match="profile must be 'wrong'"):
        render("wrong", folder)
    (folder / "phantom.yaml").write_text(PHANTOM + "other: &o {a: 1}\nmore: *o\n")
    with pytest.raises(ParamsError, match="anchors"):
        render("tiny", folder)


ROOT = Path(__file__).parents[2]


def test_the_row_of_three_times_the_steps_has_three_times_the_steps():
    section = parse_yaml(render("phantom-full", ROOT / "profiles"), "phantom-full")["train_medim"]
    assert section["changes"]["medim_3x"]["optim"]["steps"] == 3 * section["optim"]["steps"]


@pytest.mark.skipif(not (ROOT / "profiles/phantom.yaml").is_file(), reason="no profiles yet")
@pytest.mark.parametrize("name", profiles(ROOT / "profiles"))
def test_every_profile_of_this_repository_can_be_written(name):
    assert parse_yaml(render(name, ROOT / "profiles"), name)["profile"] == name


def test_a_mapping_is_free_by_its_last_key_or_by_all(folder):
    base = "train_baseline: {settings: {r2gen: {beams: 3}}}\nmix_pairs: {mixes: {real: 1}}\n"
    (folder / "phantom.yaml").write_text(PHANTOM + base)
    more = "train_baseline: {settings: {blip: {beams: 1}}}\nmix_pairs: {mixes: {twice: 2}}\n"
    (folder / "tiny.yaml").write_text("profile: tiny\n" + more)
    params = parse_yaml(render("tiny", folder), "tiny")
    assert params["train_baseline"] == {"settings": {"r2gen": {"beams": 3}, "blip": {"beams": 1}}}
    assert params["mix_pairs"] == {"mixes": {"real": 1, "twice": 2}}
    (folder / "phantom.yaml").write_text(PHANTOM + "generate: {settings: {a: 1}}\n")
    (folder / "tiny.yaml").write_text("profile: tiny\ngenerate: {settings: {b: 2}}\n")
    with pytest.raises(ParamsError, match=r"has no generate\.settings\.b"):
        render("tiny", folder)
