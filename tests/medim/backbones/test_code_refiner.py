"""A CNN beside the head of codes: its formula, whom it reaches, and that it begins as nothing."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_medim as tiny
import torch
from noisy_inputs import noisy, shaken
from test_code_patch import LAYOUT, VOCAB
from test_mllm import SETTINGS
from torch.nn.functional import conv2d, silu

from medim.backbone_pretraining import CausalDecoder
from medim.backbones.code_refiner import CodeRefiner, RefinerSettings
from medim.backbones.mllm import MLLM, BackboneSettings

CODES, SIDE, WIDTH = 24, 4, 6
SIZES = RefinerSettings(channels=16, blocks=2)


def refiner(blocks: int = 2) -> CodeRefiner:
    torch.manual_seed(0)
    return shaken(CodeRefiner(CODES, SIDE**2, WIDTH, replace(SIZES, blocks=blocks)), 0.2)


def refined(**changes: Any) -> MLLM:
    torch.manual_seed(0)
    return MLLM(VOCAB, LAYOUT, replace(SETTINGS, code_patch=2, code_refiner=SIZES, **changes))


def awake(model: MLLM) -> MLLM:
    shaken(model.refiner, 0.2)
    return model


def test_it_is_its_formula():
    made, codes, hidden = refiner(), torch.randint(CODES + 1, (2, SIDE**2)), torch.randn(2, SIDE**2, WIDTH)

    def norm(x, weights):
        parts = x.unflatten(1, (8, -1))  # eight groups of channels, each over the whole grid
        centred = parts - parts.mean((2, 3, 4), keepdim=True)
        scaled = centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
        return scaled.flatten(1, 2) * weights.weight[:, None, None] + weights.bias[:, None, None]

    x = made.embed.weight[codes] + hidden @ made.of_hidden.weight.T + made.of_hidden.bias
    x = x.transpose(1, 2).reshape(2, SIZES.channels, SIDE, SIDE) + made.place
    for block in made.blocks:
        h = conv2d(silu(norm(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
        x = x + conv2d(silu(norm(h, block.norm2)), block.conv2.weight, block.conv2.bias, padding=1)
    expected = norm(x, made.norm).flatten(2).transpose(1, 2) @ made.head.weight.T + made.head.bias
    wanted = torch.rand(2, SIDE**2) < 0.5
    torch.testing.assert_close(made(codes, hidden, wanted), expected[wanted], atol=1e-5, rtol=1e-4)


def test_it_begins_as_nothing():
    model = refined()
    xt, t, wanted = noisy(VOCAB, LAYOUT, 3)
    without = MLLM(VOCAB, LAYOUT, replace(SETTINGS, code_patch=2))
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("refiner.")})
    for mine, theirs in zip(model(xt, t, wanted), without(xt, t, wanted), strict=True):
        assert torch.equal(mine, theirs)


def test_it_is_told_codes_and_what_is_masked():
    """Shared ids become codes, [MASK] the id behind them; what it adds is beside the decoder's logits."""
    model = awake(refined())
    xt, t, wanted = noisy(VOCAB, LAYOUT, 3)
    codes = torch.randint(CODES, (3, LAYOUT.n_image))
    hidden_codes = torch.rand(codes.shape) < 0.5
    xt[:, LAYOUT.image] = torch.where(hidden_codes, VOCAB.mask_id, VOCAB.from_codes(codes))
    hidden, asked = model.hidden(xt, t), wanted[:, LAYOUT.image]
    told = torch.where(hidden_codes, CODES, codes)
    expected = model.logits_at(hidden, wanted).image + model.refiner(told, hidden[:, LAYOUT.image], asked)
    torch.testing.assert_close(model(xt, t, wanted).image, expected)


def test_neighbours_reach_a_code_by_convolutions():
    """With the norms' sums over the grid held apart: a far code moves them alone, a near one the kernels, too."""
    made = refiner(blocks=1)
    for block in made.blocks:
        block.norm1, block.norm2 = torch.nn.Identity(), torch.nn.Identity()
    made.norm = torch.nn.Identity()
    codes, hidden = torch.zeros(1, SIDE**2, dtype=torch.int64), torch.zeros(1, SIDE**2, WIDTH)
    everywhere = torch.ones(1, SIDE**2, dtype=torch.bool)
    other = codes.clone()
    other[0, 0] = 1
    changed = (made(other, hidden, everywhere) != made(codes, hidden, everywhere)).any(-1).view(SIDE, SIDE)
    reach = torch.arange(SIDE)[:, None].maximum(torch.arange(SIDE)) <= 2  # two kernels of 3 x 3 around the corner
    assert torch.equal(changed, reach)


def test_only_logits_of_codes_are_changed():
    model = refined()
    xt, t, wanted = noisy(VOCAB, LAYOUT, 3)
    before, after = model(xt, t, wanted), awake(model)(xt, t, wanted)
    assert torch.equal(before.text, after.text) and not torch.isclose(before.image, after.image).any(-1).all()


def test_samples_without_wanted_codes_are_left_alone():
    """A sample's logits do not depend on who else is refined, and a batch of words alone trains all the same."""
    model = awake(refined())
    xt, t, wanted = noisy(VOCAB, LAYOUT, 3)
    wanted[0, LAYOUT.image] = False
    together, alone = model(xt, t, wanted), model(xt[1:], t[1:], wanted[1:])
    torch.testing.assert_close(together.image, alone.image)
    words = wanted.clone()
    words[:, LAYOUT.image] = False
    words[:, LAYOUT.text] = True
    logits = model(xt, t, words)
    (logits.text.sum() + logits.image.sum()).backward()
    for name, parameter in model.refiner.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_the_prior_has_none():
    """Next-token prediction would see the code that it is asked for; the prior's weights are the decoder's alone."""
    decoder = CausalDecoder(tiny.tokenizer(), tiny.CODES, tiny.LAYOUT, replace(tiny.BACKBONE, code_refiner=SIZES))
    assert decoder.backbone.refiner is None
    assert not [name for name, _ in refined().decoder_parameters() if name.startswith("refiner.")]


def test_what_is_refused():
    with pytest.raises(ValueError, match="code_refiner sees what comes later, causal: true must not"):
        replace(SETTINGS, causal=True, code_refiner=SIZES)
    with pytest.raises(ValueError, match=r"code_refiner\.blocks must be at least 1, got 0"):
        RefinerSettings(channels=8, blocks=0)
    with pytest.raises(ValueError, match=r"code_refiner\.channels must be a multiple of 8, got 12"):
        RefinerSettings(channels=12, blocks=1)
    with pytest.raises(ValueError, match="code_refiner needs a square of codes, got 12"):
        CodeRefiner(CODES, 12, WIDTH, SIZES)


def test_its_codes_start_from_the_codebook():
    """Codes that are near in the codebook are near in the embedding; [MASK]'s row is left as it was drawn."""
    torch.manual_seed(0)
    made = CodeRefiner(CODES, SIDE**2, WIDTH, SIZES)
    mask, book = made.embed.weight[-1].clone(), torch.randn(CODES, 3)
    made.start_codes(book, torch.Generator().manual_seed(0))
    assert torch.equal(made.embed.weight[-1], mask)
    apart = [torch.pdist(x.detach()) for x in (book, made.embed.weight[:-1])]
    assert torch.corrcoef(torch.stack(apart))[0, 1] > 0.6


def test_settings_survive_their_dict():
    settings = replace(SETTINGS, code_refiner=SIZES)
    assert BackboneSettings(**settings.to_dict()) == settings
