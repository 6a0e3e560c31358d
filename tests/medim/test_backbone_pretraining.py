"""The prior: both orders, the next-token loss, and that everything carries over to MeDiM."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_medim as tiny
import torch
import yaml

from medim.backbone_pretraining import (
    CausalDecoder,
    PretrainingSettings,
    PretrainingTrainee,
    as_prior,
    pretrain_backbone,
    validation_nats,
)
from medim.medim_training import build_medim
from medim.pretrained import Beginning, Start, is_own
from medim.tokenizers.text import TextTokenizer

SETTINGS = PretrainingSettings(tiny.BACKBONE, caption_first=0.5, text_weight=1.0, image_weight=0.6, val_pairs=4)


def causal_decoder() -> CausalDecoder:
    torch.manual_seed(0)
    return CausalDecoder(tiny.tokenizer(), tiny.CODES, tiny.LAYOUT, tiny.BACKBONE)


def pretrain(folder: Path) -> Path:
    data = tiny.data(folder / "tokens")
    pretrain_backbone(
        data, SETTINGS, replace(tiny.OPTIM, steps=3), seed=1, work=folder / "work", out=folder / "prior",
        on_log=lambda *_: None, device=torch.device("cpu"),
    )  # fmt: skip
    return folder / "prior"


def test_what_is_learned():
    model, batch = causal_decoder(), tiny.tokens().batch(range(2))
    learned = model.learned(batch, torch.tensor([False, True]))
    for row, caption_first in enumerate((False, True)):
        caption = batch.text[row].tolist().index(model.tokenizer.eos_id) + 1  # the first EOS is learned
        assert learned[row, tiny.LAYOUT.text].tolist() == [not caption_first] + [True] * (caption - 1) + [False] * (
            20 - caption
        )
        assert learned[row, : tiny.LAYOUT.text.start].tolist() == [False] + [True] * 9 + [False]


@pytest.mark.parametrize("positions", ["flat", "grid"])
@pytest.mark.parametrize("caption_first", [False, True])
def test_the_loss_is_next_token_cross_entropy(caption_first, positions):
    """By hand, token by token, from prefixes alone: so nothing of the future is used."""
    torch.manual_seed(0)
    backbone = replace(tiny.BACKBONE, positions=positions)
    model, batch = CausalDecoder(tiny.tokenizer(), tiny.CODES, tiny.LAYOUT, backbone), tiny.tokens().batch(range(1))
    picture = [model.tokenizer.boi_id, *model.vocab.from_codes(batch.image[0]).tolist(), model.tokenizer.eoi_id]
    caption = batch.text[0].tolist()
    ids = torch.tensor([caption + picture if caption_first else picture + caption])
    if caption_first:
        learned = [True] * (caption.index(model.tokenizer.eos_id) + 1)
        learned = [False, *learned[1:]] + [False] * (20 - len(learned)) + [False] + [True] * 9 + [False]
    else:
        learned = [False] + [True] * 9 + [False] + [i <= caption.index(model.tokenizer.eos_id) for i in range(20)]
    text_rows, image_rows = model.backbone.head_rows()
    places = torch.arange(ids.shape[1])[None] + (ids.shape[1] if caption_first and positions == "grid" else 0)
    nats: dict[str, list[float]] = {"text": [], "image": []}
    with torch.no_grad():
        embeddings = model.backbone.decoder.embed_tokens(ids)
        for i in range(1, ids.shape[1]):
            if not learned[i]:
                continue
            hidden = model.backbone.decoder(inputs_embeds=embeddings[:, :i], position_ids=places[:, :i])
            is_code = int(ids[0, i]) >= model.vocab.image_offset
            target = int(ids[0, i]) - (model.vocab.image_offset if is_code else 0)
            log_p = (hidden.last_hidden_state[0, -1] @ (image_rows if is_code else text_rows).T).log_softmax(-1)
            nats["image" if is_code else "text"].append(-float(log_p[target]))
        text, image = model.nats(batch, torch.tensor([caption_first]))
    assert float(text) == pytest.approx(sum(nats["text"]) / len(nats["text"]), rel=1e-4)
    assert float(image) == pytest.approx(sum(nats["image"]) / len(nats["image"]), rel=1e-4)


@pytest.mark.parametrize("first", [[False, False], [True, False]])
def test_with_a_stem_only_codes_behind_their_caption_are_learned(first):
    torch.manual_seed(0)
    model = CausalDecoder(tiny.tokenizer(), tiny.CODES, tiny.LAYOUT, replace(tiny.BACKBONE, code_stem=1))
    batch, caption_first = tiny.tokens().batch(range(2)), torch.tensor(first)
    learned = model.learned(batch, caption_first)
    assert learned[:, tiny.LAYOUT.image].all(1).tolist() == first == learned[:, tiny.LAYOUT.image].any(1).tolist()
    assert torch.equal(
        learned[:, tiny.LAYOUT.text], causal_decoder().learned(batch, caption_first)[:, tiny.LAYOUT.text]
    )
    text, image = model.nats(batch, caption_first)
    assert float(text) > 0 and (float(image) > 0) == any(first)
    named = validation_nats(model, {"a": tiny.tokens()}, 4, 2)
    assert set(named) == {"a/picture_first/text", "a/caption_first/text", "a/caption_first/image"}
    _, logs = PretrainingTrainee(model, replace(SETTINGS, caption_first=float(any(first)))).loss(
        "backbone", batch, 0, torch.Generator().manual_seed(0)
    )
    assert ("image" in logs) == any(first)


def test_codes_that_would_never_be_learned_are_refused():
    with pytest.raises(ValueError, match="caption_first is 0"):
        replace(SETTINGS, backbone=replace(tiny.BACKBONE, code_stem=1), caption_first=0.0)


def test_the_prior_depends_on_what_dvc_yaml_lists_of_the_backbone_and_on_nothing_else():
    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["pretrain_backbone"]
    prefix = "train_medim.settings.backbone."
    listed = {name.removeprefix(prefix) for name in stage["params"] if name.startswith(prefix)}
    params = yaml.safe_load(Path("params.yaml").read_text())["train_medim"]["settings"]["backbone"]
    other = as_prior(replace(tiny.BACKBONE, **{name: params[name] for name in params if name not in listed}))
    assert other == as_prior(tiny.BACKBONE)
    assert listed <= params.keys()


@pytest.mark.parametrize("change", [{"code_stem": 1}, {"code_patch": 3}])
def test_a_prior_of_another_backbone_is_refused(tmp_path, change):
    prior = pretrain(tmp_path)
    data = tiny.data(tmp_path / "tokens")
    with pytest.raises(ValueError, match="does not fit the backbone"):
        build_medim(data, tiny.settings(replace(tiny.BACKBONE, **change)), 5, Beginning(Start(prior, None, None, None)))
    other = CausalDecoder(tiny.tokenizer(), tiny.CODES, tiny.LAYOUT, replace(tiny.BACKBONE, **change))
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match="does not fit the backbone"):
        build_medim(data, tiny.settings(), 5, Beginning(Start(tmp_path / "other", None, None, None)))


def test_every_weight_carries_over(tmp_path):
    prior = pretrain(tmp_path)
    assert is_own(prior)
    data = tiny.data(tmp_path / "tokens")
    model = build_medim(data, tiny.settings(), 5, Beginning(Start(prior, None, None, None)))
    trained = build_medim(
        data, tiny.settings(replace(tiny.BACKBONE, tied=False)), 5, Beginning(Start(prior, None, None, None))
    )
    from safetensors.torch import load_file

    state = load_file(prior / "model.safetensors")
    names = {name for name, _ in model.backbone.decoder_parameters()}
    assert state.keys() == names
    for name, value in model.backbone.decoder_parameters():
        assert torch.equal(value, state[name])
    assert torch.equal(trained.backbone.head, state["decoder.embed_tokens.weight"])
    scratch = build_medim(data, tiny.settings(), 5, Beginning())
    assert not torch.equal(scratch.backbone.decoder.embed_tokens.weight, model.backbone.decoder.embed_tokens.weight)
    for name, value in scratch.backbone.adaln.named_parameters():
        assert torch.equal(value, model.backbone.adaln.get_parameter(name))


def test_what_does_not_fit_is_refused(tmp_path):
    prior = pretrain(tmp_path)
    data, start = tiny.data(tmp_path / "tokens"), Start(prior, None, None, None)
    deeper = replace(tiny.BACKBONE, decoder=tiny.DECODER | {"num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"layers\.2.*same decoder"):
        build_medim(data, tiny.settings(deeper), 5, Beginning(start))
    with pytest.raises(ValueError, match="embed_tokens"):
        build_medim(replace(data, codebook=torch.zeros(30, 4)), tiny.settings(), 5, Beginning(start))
    TextTokenizer.train([text.upper() for text in tiny.TEXTS], 300).save(tmp_path / "other")
    with pytest.raises(ValueError, match="another report tokenizer"):
        build_medim(replace(data, tokenizer=tmp_path / "other"), tiny.settings(), 5, Beginning(start))


def test_the_prior_is_logged_per_order_and_modality(tmp_path):
    seen: set[str] = set()
    pretrain_backbone(
        tiny.data(tmp_path / "tokens"), SETTINGS, replace(tiny.OPTIM, steps=1), seed=1, work=tmp_path / "work",
        out=tmp_path / "prior", on_log=lambda _step, values: seen.update(values), device=torch.device("cpu"),
    )  # fmt: skip
    orders = ("picture_first", "caption_first")
    assert {f"val/a/{order}/{part}" for order in orders for part in ("text", "image")} <= seen
    assert json.loads((tmp_path / "prior/config.json").read_text())["backbone"]["decoder"] == tiny.DECODER
