"""The model: the sequence, what the loss counts, and a folder that gives the same model back."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_medim as tiny
import torch

from medim.diffusion.states import STATES, state_maps
from medim.model import MeDiM, load_medim
from medim.tokenizers.text import TextTokenizer


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_the_sequence_is_boi_picture_eoi_report():
    model, batch = tiny.medim(), tiny.tokens().batch(range(6))
    x = model.sequence(batch.text, batch.image)
    assert x.shape == (6, tiny.LAYOUT.length)
    assert set(x[:, 0].tolist()) == {model.tokenizer.boi_id}
    assert set(x[:, 10].tolist()) == {model.tokenizer.eoi_id}
    assert torch.equal(x[:, 1:10], batch.image + model.vocab.n_text + 1)
    assert torch.equal(x[:, 11:], batch.text)


def test_parts_that_are_not_given_are_masked():
    model, batch = tiny.medim(), tiny.tokens().batch(range(2))
    layout, mask = model.layout, model.vocab.mask_id
    assert bool((model.sequence(batch.text, None)[:, layout.image] == mask).all())
    assert bool((model.sequence(None, batch.image)[:, layout.text] == mask).all())
    nothing = model.sequence(None, None, 3)
    assert nothing.shape == (3, layout.length)
    assert int((nothing == mask).sum()) == 3 * (layout.n_text + layout.n_image)


def test_wrong_lengths_and_ids_are_refused():
    model, batch = tiny.medim(), tiny.tokens().batch(range(2))
    with pytest.raises(ValueError, match="20 tokens here, got 19"):
        model.sequence(batch.text[:, :-1], None)
    with pytest.raises(ValueError, match="codes must lie in"):
        model.sequence(None, batch.image + tiny.CODES)


@pytest.mark.parametrize("complementary", [False, True])
def test_a_model_that_knows_nothing_costs_the_log_of_each_alphabet(complementary):
    """Zero rows give zero logits, so every masked token costs log n; the NELBO's weights average to 1 per token."""
    model, batch = tiny.medim(), tiny.tokens(2000).batch(range(2000))
    with torch.no_grad():
        model.backbone.decoder.embed_tokens.weight.zero_()
        loss = replace(tiny.LOSS, states={"joint": 1.0}, prompt_keep=0.0, complementary=complementary)
        logs = model.loss(batch, loss, generator()).logs()
    assert float(logs["nelbo_text"]) == pytest.approx(math.log(model.vocab.n_text), rel=0.05)
    assert float(logs["nelbo_image"]) == pytest.approx(math.log(tiny.CODES), rel=0.05)


@pytest.mark.parametrize(
    ("state", "text", "image"),
    [("joint", True, True), ("report_given_picture", True, False), ("picture_given_report", False, True)],
)
def test_only_what_is_asked_carries_loss(state, text, image):
    model, batch = tiny.medim(), tiny.tokens().batch(range(6))
    loss = replace(tiny.LOSS, states={state: 1.0}, condition_dropout=0.0)
    result = model.loss(batch, loss, generator())
    assert bool(result.text_tokens.any()) == text
    assert bool(result.image_tokens.any()) == image
    assert float(result.loss.detach()) > 0


def test_samples_that_are_masked_whole_ask_for_every_token_of_the_answer():
    model, batch = tiny.medim(), tiny.tokens().batch(range(6))
    state = torch.full((6,), STATES.index("report_given_picture"))
    x0 = model.sequence(batch.text, batch.image)
    maps = state_maps(state, batch.prompt_tokens, batch.prompt_tokens, model.space, 0.0, 0.0, 0.0, 0.0, generator())
    loss = replace(tiny.LOSS, all_masked={"report_given_picture": 1.0})
    noisy = model.noisy(x0, maps, loss, generator())
    assert bool((noisy.t == 1).all())
    assert float(noisy.masked[:, model.layout.text].double().mean()) > 0.9  # alpha(1) is 1e-3
    assert not bool(noisy.masked[:, model.layout.image].any())


def test_a_report_that_is_cut_is_told_the_share_that_is_masked():
    """As the sampler does while it writes: some words known, nothing behind them, and t the masked share."""
    model, batch = tiny.medim(), tiny.tokens().batch(np.arange(30) % 6)
    state = torch.full((30,), STATES.index("report_given_picture"))
    x0, words = model.sequence(batch.text, batch.image), batch.report_tokens(model.tokenizer.eos_id)
    loss = replace(tiny.LOSS, length_known=0.0, cut=1.0)
    maps = [
        state_maps(state, batch.prompt_tokens, words, model.space, 0.0, 0.0, cut, 0.0, generator())
        for cut in (0.0, 1.0)
    ]
    free, cut = (model.noisy(x0, one, loss, generator()) for one in maps)
    covered, text = maps[1].covered, model.layout.text
    assert covered.any(1).sum() > 20
    assert torch.equal(cut.masked, free.masked | covered)
    assert torch.equal(cut.xt, torch.where(cut.masked, model.vocab.mask_id, x0))
    hidden, number = covered.sum(1), model.layout.n_text
    expected = (free.t * (1 - 1e-3) * (number - hidden) + hidden) / number / (1 - 1e-3)
    torch.testing.assert_close(cut.t, torch.where(hidden > 0, expected.clamp(max=1), free.t))
    assert torch.equal(cut.weight, free.weight) and not cut.masked[:, : text.start].any()
    assert float(model.loss(batch, replace(loss, states={"report_given_picture": 1.0}), generator()).loss.detach()) > 0


def test_a_report_that_is_cut_has_no_complement():
    with pytest.raises(ValueError, match=r"complementary masks need cut 0, got 0\.4"):
        replace(tiny.LOSS, complementary=True, cut=0.4)
    assert replace(tiny.LOSS, complementary=True).cut == 0


def test_a_saved_folder_is_the_same_model(tmp_path):
    model = tiny.medim().eval()
    model.save(tmp_path, {"variant": "medim"})
    again = load_medim(tmp_path)
    x = model.sequence(None, tiny.tokens().batch(range(3)).image)
    wanted = x == model.vocab.mask_id
    assert torch.equal(model(x, torch.rand(3, generator=generator()), wanted).text,
                       again(x, torch.rand(3, generator=generator()), wanted).text)  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["system"], config["variant"]) == ("medim.questions", "medim")
    assert TextTokenizer.load(tmp_path).encode(tiny.TEXTS[0], 20) == model.tokenizer.encode(tiny.TEXTS[0], 20)
    first = (tmp_path / "model.safetensors").read_bytes()
    again.save(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == first


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: run `dvc repro train_medim`"):
        MeDiM.load(tmp_path)


def test_a_folder_of_another_version_names_what_differs(tmp_path):
    tiny.medim().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["backbone"]["code_refiner"]
    config["backbone"]["depth_of_old"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = r"lacks \['code_refiner'\] and has \['depth_of_old'\].*Run `dvc repro train_medim`"
    with pytest.raises(ValueError, match=message):
        load_medim(tmp_path)


def test_an_averaged_copy_is_independent():
    model = tiny.medim()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone.decoder.norm.weight.zero_()
    x = model.sequence(None, None, 1)
    wanted = x == model.vocab.mask_id
    assert not torch.equal(model(x, torch.ones(1), wanted).text, other(x, torch.ones(1), wanted).text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": {"joint": 0.5}}, "sum to 1"),
        ({"states": {"jiont": 1.0}}, "jiont"),
        ({"all_masked": {"jiont": 0.5}}, "all_masked.*jiont"),
        ({"all_masked": {"joint": 1.5}}, "all_masked.joint must lie in"),
        ({"prompt_keep": -0.1}, "prompt_keep must lie in"),
        ({"condition_dropout": 2.0}, "condition_dropout must lie in"),
        ({"weighting": "max_cap"}, "no loss weighting 'max_cap'"),
        ({"weighting": "min_cap", "cap": 0.5}, "at least 1, got 0.5"),
    ],
)
def test_loss_settings_refuse_wrong_values(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny.LOSS, **changes)
