"""The backbone: each switch of Table 4 does what it says, and the split head equals the full one."""

from dataclasses import replace
from typing import Any

import noisy_inputs
import pytest
import torch
from torch import Tensor

from medim.backbones import attention
from medim.backbones.mllm import MLLM, BackboneSettings, check_decoder_keys
from medim.vocab import SequenceLayout, SharedVocab

DECODERS: dict[str, dict[str, Any]] = {
    name: {
        "model_type": name, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }
    for name in ("llama", "gemma", "qwen2", "mistral")
}  # fmt: skip
VOCAB, LAYOUT = SharedVocab(40, 24), SequenceLayout(n_text=7, n_image=9)
SETTINGS = BackboneSettings(
    DECODERS["llama"], "flat", "drawn", 1, 0, None, None, False, "t", "full", "identity", True, True, False
)


def build(seed: int = 0, **changes: Any) -> MLLM:
    torch.manual_seed(seed)
    return MLLM(VOCAB, LAYOUT, replace(SETTINGS, **changes))


def shaken(model: MLLM) -> MLLM:
    return noisy_inputs.shaken(model, 0.2)


def noisy(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return noisy_inputs.noisy(VOCAB, LAYOUT, batch)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_split_head_equals_the_full_one(name, tied):
    model = shaken(build(decoder=DECODERS[name], tied=tied))
    xt, t, wanted = noisy()
    got = model(xt, t, wanted)
    rows = model.decoder.embed_tokens.weight if tied else model.head
    full = model.hidden(xt, t) @ rows.T  # (B, L, V)
    is_text, is_image = (LAYOUT.modality() == m for m in (0, 1))
    torch.testing.assert_close(got.text, full[wanted & is_text][:, : VOCAB.n_text])
    torch.testing.assert_close(got.image, full[wanted & is_image][:, VOCAB.image_offset :])


@pytest.mark.parametrize("name", DECODERS)
def test_causal_without_time_is_the_library_s_model(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    model = build(decoder=DECODERS[name], causal=True, timestep="none")
    values = {k: v for k, v in DECODERS[name].items() if k != "model_type"}
    config = AutoConfig.for_model(
        name, **values, vocab_size=VOCAB.size, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_config(config)
    theirs.model.load_state_dict(model.decoder.state_dict())
    theirs.tie_weights()
    xt, t, _ = noisy()
    everywhere = torch.ones_like(xt, dtype=torch.bool)
    got, logits = model(xt, t, everywhere), theirs(input_ids=xt).logits
    torch.testing.assert_close(got.text, logits[:, LAYOUT.text, : VOCAB.n_text].flatten(0, 1))
    torch.testing.assert_close(got.image, logits[:, LAYOUT.image, VOCAB.image_offset :].flatten(0, 1))
    with_time = build(decoder=DECODERS[name], causal=True)  # AdaLN at its identity start
    with_time.decoder.load_state_dict(model.decoder.state_dict())
    assert torch.equal(with_time(xt, t, everywhere).text, got.text)


@pytest.mark.parametrize("causal", [False, True])
def test_the_last_token_reaches_the_first_unless_causal(causal):
    model = shaken(build(causal=causal))
    xt, t, _ = noisy()
    other = xt.clone()
    other[:, -1] = (other[:, -1] + 1) % VOCAB.n_text
    same = torch.equal(model.hidden(xt, t)[:, 0], model.hidden(other, t)[:, 0])
    assert same == causal
    assert not torch.equal(model.hidden(xt, t)[:, -1], model.hidden(other, t)[:, -1])


@pytest.mark.parametrize(
    ("changes", "depends"),
    [
        ({}, True),
        ({"timestep": "sigma"}, True),
        ({"adaln": "single"}, True),
        ({"adaln": "none"}, True),
        ({"timestep": "none"}, False),
        ({"timestep": "none", "adaln": "none"}, False),
    ],
)
def test_time_matters_unless_it_is_switched_off(changes, depends):
    model = shaken(build(**changes))
    xt, t, _ = noisy()
    assert torch.equal(model.hidden(xt, t), model.hidden(xt, 1 - t)) != depends
    has_time = any("time" in name or "adaln" in name for name, _ in model.named_parameters())
    assert has_time == depends


def test_without_adaln_time_is_added_to_the_tokens():
    model = shaken(build(adaln="none"))
    xt, t, _ = noisy()
    embeddings = model.decoder.embed_tokens(xt) + model.time_weight * model.embed_time(t)[:, None]
    torch.testing.assert_close(model.hidden(xt, t), model.decoder(inputs_embeds=embeddings).last_hidden_state)
    assert not any("adaln" in name for name, _ in model.named_parameters())


def test_bidirectional_attention_gets_no_mask(monkeypatch):
    seen: list[tuple[Tensor | None, bool]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor | None = None, is_causal: bool = False, **kwargs: Any) -> Tensor:
        seen.append((attn_mask, is_causal))
        return real(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    xt, t, wanted = noisy()
    build()(xt, t, wanted)
    build(causal=True)(xt, t, wanted)
    assert seen == [(None, False)] * 3 + [(None, True)] * 3


@pytest.mark.parametrize(("heads", "causal"), [(2, False), (4, False), (4, True)])
def test_short_bf16_attention_is_sdpa(monkeypatch, heads, causal):
    q, k, v = (torch.randn(2, 4, 30, 8, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    k, v = k[:, :heads], v[:, :heads]
    module = torch.nn.Module()
    module.num_key_value_groups = 4 // heads
    arguments = {"attention_mask": None, "is_causal": causal, "scaling": 0.3}
    got, _ = attention.attend(module, q, k, v, **arguments)
    monkeypatch.setattr(attention, "SHORT", 0)
    expected, _ = attention.attend(module, q, k, v, **arguments)
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)


def test_autocast_stays_near_float32():
    model = shaken(build())
    xt, t, wanted = noisy()
    exact = model(xt, t, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(xt, t, wanted)
    error = (rough.text.float() - exact.text).detach().abs().max()
    assert float(error) < 0.05 * float(exact.text.detach().abs().max())


def test_gradient_checkpointing_gives_the_same_gradients():
    xt, t, wanted = noisy()
    grads = []
    for checkpointing in (False, True):
        model = shaken(build(gradient_checkpointing=checkpointing)).train()
        assert model.decoder.layers[0].gradient_checkpointing == checkpointing
        logits = model(xt, t, wanted)
        (logits.text.square().sum() + logits.image.square().sum()).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", DECODERS)
def test_every_row_of_the_embedding_learns(name):
    """No id is a padding id, whose row would be frozen (Gemma's default is 0)."""
    model = build(decoder=DECODERS[name])
    x = torch.arange(LAYOUT.length)[None] % 5
    model.hidden(x, torch.rand(1)).square().sum().backward()
    assert bool((model.decoder.embed_tokens.weight.grad[:5].abs().sum(1) > 0).all())


def test_a_sample_does_not_depend_on_its_batch():
    model = shaken(build())
    xt, t, wanted = noisy()
    alone = model(xt[1:2], t[1:2], wanted[1:2])
    first = int((wanted[0] & (LAYOUT.modality() == 0)).sum())
    torch.testing.assert_close(model(xt, t, wanted).text[first : first + len(alone.text)], alone.text)


def test_weights_are_initialised_from_torch_s_seed():
    first, same, other = build(0).state_dict(), build(0).state_dict(), build(1).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["decoder.embed_tokens.weight"], other["decoder.embed_tokens.weight"])


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="gpt2"):
        build(decoder={"model_type": "gpt2"})
    with pytest.raises(ValueError, match="18 positions, got 5"):
        build()(torch.zeros(1, 5, dtype=torch.int64), torch.rand(1), torch.ones(1, 5, dtype=torch.bool))


@pytest.mark.parametrize("name", ["positions", "timestep", "adaln", "adaln_init"])
def test_settings_refuse_an_unknown_name(name):
    with pytest.raises(ValueError, match=rf"{name} must be one of .*got 'x' \(params.yaml\)"):
        replace(SETTINGS, **{name: "x"})


def test_settings_refuse_an_unknown_decoder():
    with pytest.raises(ValueError, match=r"decoder.model_type must be one of llama, .* got 'gpt2'"):
        replace(SETTINGS, decoder={"model_type": "gpt2"})


@pytest.mark.parametrize("name", DECODERS)
def test_a_misspelt_decoder_key_is_named(name):
    check_decoder_keys(DECODERS[name] | {"rope_theta": 5.0})
    with pytest.raises(ValueError, match=r"no 'num_hidden_layer' \(did you mean 'num_hidden_layers'\?\)"):
        check_decoder_keys({"model_type": name, "num_hidden_layer": 1})
