"""UniDisc's denoiser against its formulas written out token by token, and its published sizes."""

import cmath
import math
from dataclasses import replace

import noisy_inputs
import pytest
import torch
from torch import Tensor

from medim.backbones.mllm import BackboneSettings
from medim.backbones.unidisc import UniDiscBackbone, UniDiscSettings, rotary_angles
from medim.vocab import SequenceLayout, SharedVocab

VOCAB, LAYOUT = SharedVocab(12, 7), SequenceLayout(n_text=5, n_image=9)
SETTINGS = UniDiscSettings(
    hidden_size=16, blocks=2, heads=2, mlp_ratio=3, dropout=0.1, positions="grid", time_conditioning=False,
    cond_width=6, code_rows="drawn", zero_head=True, gradient_checkpointing=False,
)  # fmt: skip


def build(seed: int = 0, **changes) -> UniDiscBackbone:
    torch.manual_seed(seed)
    return replace(SETTINGS, **changes).build(VOCAB, LAYOUT).eval()


def shaken(model: UniDiscBackbone) -> UniDiscBackbone:
    return noisy_inputs.shaken(model, 0.4)


def noisy(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return noisy_inputs.noisy(VOCAB, LAYOUT, batch)


# The reference: one token, one head, one pair of channels at a time, in float64.


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / math.sqrt(sum(float(v) ** 2 for v in x) / len(x) + 1e-6) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean()
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean() + 1e-5) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def angle(place: int, pair: int, channels: int, positions: str) -> float:
    """By which a pair of channels is turned at a place of report | picture."""
    code = place - LAYOUT.n_text
    if positions == "flat" or code < 0:
        return place * 10_000 ** (-2 * pair / channels)
    row, column = divmod(code, 3)
    return (column if pair % 2 else row) * 10_000 ** (-4 * (pair // 2) / channels)


def turned(x: Tensor, place: int, positions: str) -> Tensor:
    channels = len(x)
    out = x.clone()
    for pair in range(channels // 2):
        z = complex(x[pair], x[pair + channels // 2]) * cmath.exp(1j * angle(place, pair, channels, positions))
        out[pair], out[pair + channels // 2] = z.real, z.imag
    return out


def attention(w: dict[str, Tensor], name: str, xs: list[Tensor], settings: UniDiscSettings) -> list[Tensor]:
    width, channels = settings.hidden_size, settings.hidden_size // settings.heads
    query, key, value = [], [], []
    for place, x in enumerate(xs):
        parts = w[f"{name}.attn_qkv.weight"] @ x
        q, k, v = parts[:width], parts[width : 2 * width], parts[2 * width :]
        q = layer_norm(q, w[f"{name}.q_norm.weight"], w[f"{name}.q_norm.bias"])
        k = layer_norm(k, w[f"{name}.k_norm.weight"], w[f"{name}.k_norm.bias"])
        heads = [slice(h * channels, (h + 1) * channels) for h in range(settings.heads)]
        query.append([turned(q[h], place, settings.positions) for h in heads])
        key.append([turned(k[h], place, settings.positions) for h in heads])
        value.append([v[h] for h in heads])
    out = []
    for mine in query:
        mixed = []
        for h in range(settings.heads):
            weights = [math.exp(float(mine[h] @ other[h]) / math.sqrt(channels)) for other in key]
            mixed.append(sum(p / sum(weights) * v[h] for p, v in zip(weights, value, strict=True)))
        out.append(w[f"{name}.attn_out.weight"] @ torch.cat(mixed))
    return out


def time_vector(w: dict[str, Tensor], t: float) -> Tensor:
    sigma = -math.log(1 - (1 - 1e-3) * t)
    angles = [sigma * math.exp(-math.log(10_000) * k / 128) for k in range(128)]
    waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    inner = silu(w["sigma_map.mlp.0.weight"] @ waves + w["sigma_map.mlp.0.bias"])
    return silu(w["sigma_map.mlp.2.weight"] @ inner + w["sigma_map.mlp.2.bias"])


def plain(model: UniDiscBackbone, ids: Tensor, t: float) -> list[Tensor]:
    """All logits, head rows of every id, at each place of report | picture of one sample."""
    w, settings = {name: value.detach().double() for name, value in model.state_dict().items()}, model.settings
    places = [*ids[LAYOUT.text].tolist(), *ids[LAYOUT.image].tolist()]
    is_code = [place >= LAYOUT.n_text for place in range(len(places))]
    xs = [
        w["vocab_embed.embedding"][i] + w["modality_embed.embedding"][int(code)]
        for i, code in zip(places, is_code, strict=True)
    ]
    c = time_vector(w, t) if settings.time_conditioning else None

    def parts(name: str, number: int) -> tuple[Tensor, ...]:
        return (w[f"{name}.adaLN_modulation.weight"] @ c + w[f"{name}.adaLN_modulation.bias"]).chunk(number)

    for n in range(settings.blocks):
        b = f"blocks.{n}"
        shift, scale, _, shift_mlp, scale_mlp, gate = parts(b, 6) if c is not None else [0.0] * 6
        entered = [rms(x, w[f"{b}.norm1.weight"]) for x in xs]
        entered = [x * (1 + scale) + shift if code else x for x, code in zip(entered, is_code, strict=True)]
        added = attention(w, f"{b}.attention", entered, settings)
        xs = [x + rms(y, w[f"{b}.pre_residual_norm.weight"]) for x, y in zip(xs, added, strict=True)]
        for place, x in enumerate(xs):
            y = rms(x, w[f"{b}.norm2.weight"])
            y = y * (1 + scale_mlp) + shift_mlp if is_code[place] else y
            y = gelu(w[f"{b}.mlp.0.weight"] @ y + w[f"{b}.mlp.0.bias"])
            y = rms(w[f"{b}.mlp.2.weight"] @ y + w[f"{b}.mlp.2.bias"], w[f"{b}.post_ff_norm.weight"])
            xs[place] = x + (gate * y if is_code[place] and c is not None else y)
    shift, scale = parts("output_layer", 2) if c is not None else (0.0, 0.0)
    out = []
    for x, code in zip(xs, is_code, strict=True):
        y = rms(x, w["output_layer.norm_final.weight"])
        y = y * (1 + scale) + shift if code else y
        out.append(w["output_layer.linear.weight"] @ y + w["output_layer.linear.bias"])
    return out


@pytest.mark.parametrize("positions", ["grid", "flat"])
@pytest.mark.parametrize("time", [False, True])
def test_logits_are_those_of_the_formulas(positions, time):
    model = shaken(build(positions=positions, time_conditioning=time))
    xt, t, wanted = noisy()
    got = model(xt, t, wanted)
    text, image = [], []
    for ids, moment, asked in zip(xt, t.tolist(), wanted, strict=True):
        logits = plain(model, ids, moment)
        text += [y[: VOCAB.n_text] for y, a in zip(logits, asked[LAYOUT.text].tolist(), strict=False) if a]
        codes = zip(logits[LAYOUT.n_text :], asked[LAYOUT.image].tolist(), strict=True)
        image += [y[VOCAB.image_offset :] for y, a in codes if a]
    assert len(text) > 2 and len(image) > 2
    torch.testing.assert_close(got.text.double(), torch.stack(text), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.image.double(), torch.stack(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "blocks", "heads", "millions"),
    [("small", 768, 12, 12, 159), ("large", 1280, 28, 20, 675), ("extra large", 2048, 24, 16, 1407)],
)
def test_published_sizes(name, width, blocks, heads, millions):
    """LLaMA-2's 32,000 ids and [MASK], 16,384 codes; a report of 128 tokens and 16 x 16 codes."""
    vocab, layout = SharedVocab(32_000, 16_384), SequenceLayout(128, 256)
    settings = replace(SETTINGS, hidden_size=width, blocks=blocks, heads=heads, mlp_ratio=4, cond_width=128)
    with torch.device("meta"):
        model = settings.build(vocab, layout)
    block = 12 * width**2 + (4 + 1) * width + 4 * width + 4 * width  # matrices, MLP biases, norms, qk-norms
    head_and_rows = vocab.size * (2 * width + 1) + width + 2 * width
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == blocks * block + head_and_rows
    assert round(parameters / 1e6) == pytest.approx(millions, rel=0.005), name


def test_names_of_parameters_are_the_public_code_s():
    block = {"norm1.weight", "norm2.weight", "pre_residual_norm.weight", "post_ff_norm.weight", "mlp.0.weight",
             "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "attention.attn_qkv.weight", "attention.attn_out.weight",
             "attention.q_norm.weight", "attention.q_norm.bias", "attention.k_norm.weight",
             "attention.k_norm.bias"}  # fmt: skip
    ends = {"vocab_embed.embedding", "modality_embed.embedding", "output_layer.norm_final.weight",
            "output_layer.linear.weight", "output_layer.linear.bias"}  # fmt: skip
    names = {f"blocks.{n}.{name}" for n in range(2) for name in block} | ends
    assert set(build().state_dict()) == names
    adaln = {f"{place}.adaLN_modulation.{part}" for place in ("blocks.0", "blocks.1", "output_layer")
             for part in ("weight", "bias")}  # fmt: skip
    timed = set(build(time_conditioning=True).state_dict()) - names
    assert timed == adaln | {f"sigma_map.mlp.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")}


@pytest.mark.parametrize("time", [False, True])
def test_time_is_seen_only_where_it_is_told(time):
    model = shaken(build(time_conditioning=time))
    xt, t, wanted = noisy()
    assert torch.equal(model(xt, t, wanted).text, model(xt, 1 - t, wanted).text) != time


def test_adaln_starts_as_if_the_picture_s_mlp_were_off():
    """All modulations are 0 at the start: the gate too, which acts on codes alone."""
    timed, without = build(time_conditioning=True, zero_head=False), build(zero_head=False)
    without.load_state_dict(timed.state_dict(), strict=False)
    for block in without.blocks:
        block.register_forward_hook(lambda block, inputs, out: torch.where(
            inputs[3], inputs[0] + block.pre_residual_norm(block.attention(block.norm1(inputs[0]), *inputs[1])), out
        ))  # fmt: skip
    xt, t, wanted = noisy()
    torch.testing.assert_close(timed(xt, t, wanted).image, without(xt, t, wanted).image)


def test_a_head_that_starts_at_0_knows_nothing():
    xt, t, wanted = noisy()
    logits = build()(xt, t, wanted)
    assert not bool(logits.text.any()) and not bool(logits.image.any())
    assert bool(build(zero_head=False)(xt, t, wanted).text.any())


def test_boi_and_eoi_are_not_seen_and_everything_else_is():
    model = shaken(build())
    xt, t, wanted = noisy(1)
    last = torch.zeros_like(wanted)
    last[:, -1] = True
    seen = model(xt, t, last).text
    for place in range(LAYOUT.length):
        other = xt.clone()
        other[:, place] = VOCAB.image_offset if place in range(LAYOUT.image.start, LAYOUT.image.stop) else 0
        other[:, place] += (other[:, place] == xt[:, place]).long()
        assert torch.equal(model(other, t, last).text, seen) == (place in (0, LAYOUT.image.stop)), place


def test_dropout_acts_in_training_only():
    model = shaken(build(dropout=0.5))
    xt, t, wanted = noisy()
    assert torch.equal(model(xt, t, wanted).text, model(xt, t, wanted).text)
    model.train()
    assert not torch.equal(model(xt, t, wanted).text, model(xt, t, wanted).text)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = shaken(build(gradient_checkpointing=on, time_conditioning=True)).train()
        torch.manual_seed(3)  # of dropout
        logits = model(*noisy())
        (logits.text.logsumexp(1).sum() + logits.image.logsumexp(1).sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near():
    model = shaken(build())
    xt, t, wanted = noisy()
    exact = model(xt, t, wanted).text.detach()
    with torch.autocast("cpu", torch.bfloat16):
        near = model(xt, t, wanted).text.detach()
    assert near.dtype == torch.bfloat16
    assert float((near - exact).abs().max() / exact.abs().max()) < 0.05


def test_codes_of_the_codebook_have_its_geometry():
    codebook = torch.randn(VOCAB.n_image, 3, generator=torch.Generator().manual_seed(1))
    codebook[1] = codebook[0]
    first = {}
    for rows in ("drawn", "codebook"):
        model = build(code_rows=rows)
        before = model.vocab_embed.embedding.detach().clone()
        model.start_codes(codebook, torch.Generator().manual_seed(0))
        assert torch.equal(model.vocab_embed.embedding, before) == (rows == "drawn")
        codes = model.vocab_embed.embedding.detach()[VOCAB.image_offset :]
        first[rows] = float((codes[0] - codes[1]).norm() / codes.std(0).norm())
    assert first["codebook"] < 0.8 * first["drawn"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 18}, "hidden_size 18 must be a multiple of 4 x heads, 8"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"positions": "rope"}, "positions must be one of flat, grid, got 'rope'"),
        ({"code_rows": "vae"}, "code_rows must be one of codebook, drawn, got 'vae'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="grid needs a square of codes, got 8: use flat"):
        rotary_angles(SequenceLayout(5, 8), 8, "grid")
    xt, t, wanted = noisy()
    with pytest.raises(ValueError, match="built for 16 positions, got 15"):
        build()(xt[:, 1:], t, wanted[:, 1:])


def test_recipes_build_their_backbones():
    assert UniDiscSettings(**SETTINGS.to_dict()) == SETTINGS
    decoder = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
               "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    other = BackboneSettings(
        decoder, "flat", "drawn", 1, 0, None, None, False, "t", "full", "identity", True, True, False
    )
    for recipe in (SETTINGS, other):
        built = recipe.build(VOCAB, LAYOUT)
        assert built.settings == recipe and built.towers is None
