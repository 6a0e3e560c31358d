"""A prior is taken by a writer of the same method and sizes only."""

from dataclasses import replace

import pytest
import tiny_language_writers as tiny
import torch
from tiny_method_settings import BLIP
from tiny_writers import writer

from medim.baselines.blip import BlipSettings, build_blip
from medim.baselines.method_settings import read_settings
from medim.baselines.report_writer import save_writer
from medim.baselines.writer_prior import read_prior

SYSTEM = "medim.baselines.blip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("models") / "blip/prior"
    torch.manual_seed(5)
    given = read_settings(BlipSettings, BLIP, "blip")
    save_writer(build_blip(given, tiny.TEXTS), where, {"system": SYSTEM, "optim": {"steps": 7, "batch_size": 3}})
    return where


def settings(**network):
    return read_settings(BlipSettings, {**BLIP, "network": {**BLIP["network"], **network}}, "blip")


def test_the_writer_is_that_of_the_folder(folder):
    prior = read_prior(folder, SYSTEM)
    found = build_blip(settings(), tiny.TEXTS[:2], prior)
    assert prior.examples == 21 and found.words.config() == prior.config["words"]
    torch.manual_seed(5)  # that of the folder
    state = build_blip(settings(), tiny.TEXTS).state_dict()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in state.items())


def test_other_sizes_are_refused(folder):
    prior, text = read_prior(folder, SYSTEM), BLIP["network"]["text"]
    with pytest.raises(ValueError, match=r"prior of other sizes \(network\.text is .*'num_attention_heads': 4.* there"):
        build_blip(settings(text={**text, "num_attention_heads": 2}), tiny.TEXTS, prior)
    with pytest.raises(ValueError, match=r"network\.vision is .*dvc repro train_baseline@blip"):
        build_blip(settings(vision={**tiny.VISION, "num_hidden_layers": 1}), tiny.TEXTS, prior)
    build_blip(settings(beams=1, label_smoothing=0.0), tiny.TEXTS, prior)


def test_texts_must_fit_the_words_of_the_prior(folder):
    prior = read_prior(folder, SYSTEM)
    with pytest.raises(ValueError, match=r"1 texts have more tokens than words\.max_tokens, 24"):
        build_blip(settings(), ["chest x-ray: " + "zq" * 30], prior)
    short = replace(settings(), words=replace(settings().words, max_tokens=9, cut=True))
    assert build_blip(short, tiny.TEXTS, prior).words.max_tokens == 9


def test_another_method_and_missing_files_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"is the prior of medim\.baselines\.blip, medim\.baselines\.r2gen wants"):
        read_prior(folder, "medim.baselines.r2gen")
    with pytest.raises(FileNotFoundError, match=r"blip/prior/config\.json is missing: .*train_baseline@blip`"):
        read_prior(tmp_path / "blip/prior", SYSTEM)


def test_a_part_is_filled_by_its_own_weights(tmp_path):
    first, second = writer(seed=1), writer(seed=2)
    save_writer(first, tmp_path, {"system": "r2gen", "optim": {"steps": 1, "batch_size": 1}})
    prior = read_prior(tmp_path, "r2gen")
    prior.check_sizes(second.config(), ["extractor"])
    kept = {name: value.clone() for name, value in second.network.state_dict().items()}
    prior.fill(second.extractor, "extractor")
    assert all(torch.equal(v, second.extractor.state_dict()[n]) for n, v in first.extractor.state_dict().items())
    assert all(torch.equal(v, second.network.state_dict()[n]) for n, v in kept.items())
    other = {"extractor": {**second.config()["extractor"], "pixels": "imagenet"}}
    with pytest.raises(ValueError, match=r"'pixels': 'unit'.* there, .*'pixels': 'imagenet'.* here"):
        prior.check_sizes(other, ["extractor"])
