"""AdaLN: its starts, its identity with the plain decoder, and that it survives checkpointing and copying."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from medim.backbones.adaln import AdaLN, AdaLNBlock, TimestepEmbedder, adaptive_class, make_adaptive
from medim.backbones.mllm import build_decoder

DECODERS: dict[str, dict[str, Any]] = {
    name: {
        "model_type": name, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }
    for name in ("llama", "gemma", "qwen2", "mistral")
}  # fmt: skip


def decoder(name: str = "llama", causal: bool = False) -> Any:
    torch.manual_seed(0)
    return build_decoder(DECODERS[name], 50, causal, 20)


def ids(batch: int = 2, length: int = 20) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["full", "single"])
@pytest.mark.parametrize("causal", [False, True])
def test_identity_start_is_the_plain_decoder_bit_for_bit(name, kind, causal):
    plain = decoder(name, causal)
    adaptive = copy.deepcopy(plain)
    make_adaptive(adaptive)
    adaln = AdaLN(32, 3, kind, "identity", use_silu=True)
    modulations = adaln(torch.randn(2, 32))
    expected = plain(input_ids=ids()).last_hidden_state
    assert torch.equal(adaptive(input_ids=ids(), modulations=modulations).last_hidden_state, expected)
    assert torch.equal(adaptive(input_ids=ids()).last_hidden_state, expected)
    assert plain.state_dict().keys() == adaptive.state_dict().keys()


@pytest.mark.parametrize("kind", ["full", "single"])
def test_adaln_zero_turns_every_block_off(kind):
    plain = decoder()
    make_adaptive(plain)
    out = plain(input_ids=ids(), modulations=AdaLN(32, 3, kind, "adaln_zero", True)(torch.randn(2, 32)))
    assert torch.equal(out.last_hidden_state, plain.norm(plain.embed_tokens(ids())))


@pytest.mark.parametrize("start", ["identity", "adaln_zero", "official"])
def test_starts_hold_after_the_decoder_was_initialised(start):
    torch.manual_seed(0)
    adaln = AdaLN(64, 4, "full", start, False)
    plain = decoder()
    plain.adaln = adaln
    plain.init_weights()  # what overwrites the official code's zeros
    adaln.reset()
    weights = torch.cat([linear.weight.flatten() for linear in adaln.linears])
    assert all(bool((linear.bias == 0).all()) for linear in adaln.linears)
    assert float(weights.detach().std()) == pytest.approx(0.02 if start == "official" else 0.0, rel=0.02)
    gate = float(adaln.offset[2])
    assert gate == float(adaln.offset[5]) == (1.0 if start == "identity" else 0.0)
    assert adaln.offset[[0, 3]].eq(0).all() and adaln.offset[[1, 4]].eq(1).all()


def test_one_block_is_the_formula_of_its_docstring():
    layers = decoder()
    make_adaptive(layers)
    layer, x = layers.layers[1], torch.randn(2, 20, 32)
    m = torch.randn(3, 6, 2, 1, 32)
    rotary = layers.rotary_emb(x, torch.arange(20)[None])
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = m[1]
    h = layer.self_attn(layer.input_layernorm(x) * scale_a + shift_a, position_embeddings=rotary, is_causal=False,
                        attention_mask=None)[0]  # fmt: skip
    expected = x + gate_a * h
    expected = expected + gate_m * layer.mlp(layer.post_attention_layernorm(expected) * scale_m + shift_m)
    got = layer(x, modulations=m, position_embeddings=rotary, is_causal=False, attention_mask=None)
    torch.testing.assert_close(got, expected)


def test_every_part_learns_from_the_identity_start():
    layers = decoder()
    make_adaptive(layers)
    adaln, embed = AdaLN(32, 3, "full", "identity", True), TimestepEmbedder(32, "t")
    layers(input_ids=ids(), modulations=adaln(embed(torch.rand(2)))).last_hidden_state.sin().sum().backward()
    for linear in adaln.linears:
        assert bool((linear.weight.grad.view(6, 32, 32).abs().amax((1, 2)) > 0).all())


def test_checkpointed_gradients_are_the_plain_ones():
    grads = []
    for checkpointing in (False, True):
        layers = decoder().train()
        make_adaptive(layers)
        if checkpointing:
            layers.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        adaln = AdaLN(32, 3, "full", "official", True)
        out = layers(input_ids=ids(), modulations=adaln(torch.linspace(-1, 1, 64).view(2, 32)))
        out.last_hidden_state.square().sum().backward()
        grads.append([p.grad for p in [*layers.parameters(), *adaln.parameters()]])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_copy_is_independent():
    layers = decoder()
    make_adaptive(layers)
    other = copy.deepcopy(layers)
    with torch.no_grad():
        other.layers[0].mlp.down_proj.weight.add_(1)
    m = AdaLN(32, 3, "full", "official", True)(torch.ones(2, 32))
    a, b = (d(input_ids=ids(), modulations=m).last_hidden_state for d in (layers, other))
    assert not torch.equal(a, b)
    assert isinstance(other.layers[0], AdaLNBlock)
    assert type(other.layers[0]) is type(layers.layers[0])


def test_making_adaptive_twice_changes_nothing():
    layers = decoder()
    make_adaptive(layers)
    before = type(layers.layers[0])
    make_adaptive(layers)
    assert type(layers.layers[0]) is before is adaptive_class(before.__mro__[2])


def test_other_layers_are_refused():
    from transformers import AutoConfig, AutoModel

    sizes = {k: v for k, v in DECODERS["llama"].items() if k != "model_type"}
    gemma2 = AutoModel.from_config(AutoConfig.for_model("gemma2", vocab_size=50, **sizes))
    with pytest.raises(ValueError, match="pre_feedforward_layernorm"):
        make_adaptive(gemma2)


@pytest.mark.parametrize(("kind", "start"), [("none", "identity"), ("full", "zero")])
def test_unknown_names_are_refused(kind, start):
    with pytest.raises(ValueError, match="adaln"):
        AdaLN(8, 1, kind, start, True)


def test_time_inputs():
    with pytest.raises(ValueError, match="timestep"):
        TimestepEmbedder(8, "log")
    torch.manual_seed(0)
    t, sigma = TimestepEmbedder(8, "t"), TimestepEmbedder(8, "sigma")
    sigma.load_state_dict(t.state_dict())
    # by hand: sigma(t) = 1000 t' at t' = -log(1 - .999 t) / 1000
    time = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(sigma(time), t(-torch.log1p(-0.999 * time) / 1000), atol=1e-5, rtol=1e-4)
    assert t(time).shape == (3, 8)
    assert not torch.allclose(t(time)[0], t(time)[1])
