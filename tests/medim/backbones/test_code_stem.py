"""Convolutions in front of the decoder: what reaches what, with and without the masks of the prior."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_code_patch import LAYOUT, VOCAB, sequence
from test_mllm import SETTINGS
from torch.nn.functional import conv2d, silu

from medim.backbones.code_stem import CodeStem
from medim.backbones.mllm import MLLM

SIDE, WIDTH = 4, 6


def stem(blocks: int = 1, scale: float = 0.5) -> CodeStem:
    torch.manual_seed(0)
    return CodeStem(SIDE**2, WIDTH, blocks, scale)


def with_stem(**changes: Any) -> MLLM:
    torch.manual_seed(0)
    return MLLM(VOCAB, LAYOUT, replace(SETTINGS, code_stem=2, **changes))


def test_a_block_is_its_formula():
    model, x = stem(), torch.randn(2, SIDE**2, WIDTH)
    block = model.blocks[0]
    grid = x.transpose(1, 2).reshape(2, WIDTH, SIDE, SIDE)

    def norm(h):
        return h / (h.square().mean(1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt()

    h = conv2d(norm(grid), block.widen.weight, block.widen.bias, padding=1)
    h = conv2d(silu(norm(h)), block.narrow.weight, block.narrow.bias, padding=1)
    expected = (grid + 0.5 * h).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("blocks", [1, 2])
def test_causal_positions_know_only_what_stands_before(blocks):
    model = stem(blocks)
    x = torch.randn(2, SIDE**2, WIDTH)
    causal = torch.tensor([True, False])
    before = model(x, causal)
    for place in range(SIDE**2):
        other = x.clone()
        other[:, place] += 1
        changed = (model(other, causal) != before).any(-1)
        assert not changed[0, :place].any() and changed[0, place]
        if place:
            assert changed[1, place - 1] or place % SIDE == 0
    torch.testing.assert_close(model(x)[1], before[1])


def test_the_decoder_reads_what_the_stem_makes():
    """A stem that adds nothing is no stem."""
    model, x, t = with_stem(), sequence(1), torch.rand(1)
    seen = model.hidden(x, t)
    with torch.no_grad():
        for block in model.stem.blocks:
            block.narrow.weight.zero_()
            block.narrow.bias.zero_()
    silent = model.hidden(x, t)
    assert not torch.equal(silent, seen)
    without = MLLM(VOCAB, LAYOUT, replace(SETTINGS, code_stem=0))
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("stem.")})
    assert without.stem is None and torch.equal(without.hidden(x, t), silent)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_in_a_picture_that_stands_first_goes_both_ways(precision):
    """With a stem that adds nothing, so that attention is all there is."""
    model, x = with_stem(), sequence(2)
    with torch.no_grad():
        for block in model.stem.blocks:
            block.narrow.weight.zero_()
            block.narrow.bias.zero_()
    first, other = torch.tensor([True, False]), x.clone()
    last, text = LAYOUT.image.stop - 1, LAYOUT.text.start
    other[:, last] = VOCAB.mask_id
    with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
        changed = (model.before(other, first) != model.before(x, first)).any(-1)
    codes = changed[:, LAYOUT.image]
    assert not codes[0].any()
    assert not codes[1, 0] and codes[1, 1:].all()  # the first code's entry is BOI, which sees nothing behind it
    assert changed[1, text + 1 :].all() and not changed[0, LAYOUT.text].any()
    other = x.clone()
    other[:, text + 3] = (other[:, text + 3] + 1) % VOCAB.n_text
    changed = (model.before(other, first) != model.before(x, first)).any(-1)
    assert not changed[1, : text + 4].any() and changed[1, text + 4 :].all()  # captions stay causal


def test_with_the_causal_mask_the_stem_is_causal_too():
    model, x, t = with_stem(causal=True), sequence(1), torch.rand(1)
    before = model.hidden(x, t)
    for place in (LAYOUT.image.start + 5, LAYOUT.image.stop - 1):
        other = x.clone()
        other[0, place] = VOCAB.mask_id
        changed = (model.hidden(other, t) != before).any(-1)[0]
        assert not changed[:place].any() and changed[place:].any()


def test_scale_is_kept():
    """A block adds as much as it is given: two convolutions that keep the scale, silu between."""
    torch.manual_seed(0)
    wide = CodeStem(64, 128, 1, 1.0)
    x = torch.randn(20, 64, 128)
    added = (wide(x) - x).unflatten(1, (8, 8))[:, 2:-2, 2:-2]
    assert 0.5 < float(added.detach().std()) < 1.1


@pytest.mark.parametrize("patch", [1, 2])
def test_a_picture_after_its_caption_is_predicted_from_what_stands_before(patch):
    model, x = with_stem(code_patch=patch), sequence(2)
    first = torch.tensor([True, False])
    before = model.before(x, first)
    last = LAYOUT.image.stop - 1
    other = x.clone()
    other[:, last] = VOCAB.image_offset + (other[:, last] - VOCAB.image_offset + 1) % VOCAB.n_image
    changed = (model.before(other, first) != before).any(-1)
    assert not changed[0, LAYOUT.image].any()  # the last code is the last of its picture
    assert changed[1, LAYOUT.image].any()  # a picture that stands first is seen whole


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="code_stem must not be negative, got -1"):
        replace(SETTINGS, code_stem=-1)
    with pytest.raises(ValueError, match="code_stem needs a square of positions, got 12"):
        CodeStem(12, 4, 1, 1.0)
    assert any(name.startswith("stem.") for name, _ in with_stem().decoder_parameters())
