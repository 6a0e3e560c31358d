"""Codes that share a position: nothing outside the backbone changes, and p = 1 has no matrices at all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_mllm import SETTINGS, build
from torch import Tensor

from medim.backbones.code_patch import CodePatch, short_layout
from medim.backbones.mllm import MLLM
from medim.vocab import SequenceLayout, SharedVocab

VOCAB, LAYOUT = SharedVocab(40, 24), SequenceLayout(n_text=7, n_image=16)


def patched(seed: int = 0, **changes: Any) -> MLLM:
    torch.manual_seed(seed)
    return MLLM(VOCAB, LAYOUT, replace(SETTINGS, code_patch=2, **changes))


def sequence(batch: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(2)
    x = torch.randint(VOCAB.n_text, (batch, LAYOUT.length), generator=g)
    x[:, LAYOUT.image] = VOCAB.from_codes(torch.randint(VOCAB.n_image, (batch, LAYOUT.n_image), generator=g))
    return x


def test_layout():
    assert short_layout(LAYOUT, 1) == LAYOUT
    assert short_layout(LAYOUT, 2) == SequenceLayout(n_text=7, n_image=4)
    with pytest.raises(ValueError, match=r"code_patch 2 .* got 9 codes"):
        short_layout(SequenceLayout(7, 9), 2)
    with pytest.raises(ValueError, match="code_patch must be at least 1, got 0"):
        replace(SETTINGS, code_patch=0)


def test_patches_are_neighbours_and_come_back_in_raster_order():
    patch = CodePatch(LAYOUT, 2, width=4)
    with torch.no_grad():  # member k of a patch writes and reads channel k
        patch.join.weight.zero_()
        patch.split.weight.zero_()
        for k in range(4):
            patch.join.weight[k, 4 * k] = 1.0
            patch.split.weight[4 * k, k] = 1.0
    x = torch.zeros(1, LAYOUT.length, 4)
    x[0, :, 0] = torch.arange(LAYOUT.length)
    short = patch.shorten(x)
    raster = torch.arange(1, 17).view(4, 4)
    assert short.shape == (1, 4 + 7 + 2, 4)
    assert short[0, 1].tolist() == raster[:2, :2].flatten().tolist()
    assert short[0, 2].tolist() == raster[:2, 2:].flatten().tolist()
    assert short[0, 3].tolist() == raster[2:, :2].flatten().tolist()
    assert torch.equal(patch.lengthen(short), x)


def test_scale_is_kept():
    torch.manual_seed(0)
    patch, x = CodePatch(LAYOUT, 2, width=64), torch.randn(50, LAYOUT.length, 64)
    short = patch.shorten(x)
    assert float(short[:, 1:5].detach().std()) == pytest.approx(1, rel=0.05)
    assert float(patch.lengthen(short)[:, LAYOUT.image].detach().std()) == pytest.approx(1, rel=0.05)


def test_one_code_a_position_has_no_matrices():
    assert build().patch is None
    assert any(name.startswith("patch.") for name, _ in patched().decoder_parameters())


@pytest.mark.parametrize("positions", ["flat", "grid"])
def test_every_code_reaches_every_token(positions):
    model = patched(positions=positions)
    x, t = sequence(1), torch.rand(1)
    before = model.hidden(x, t)
    assert before.shape[:2] == x.shape
    for place in range(LAYOUT.image.start, LAYOUT.image.stop):
        other = x.clone()
        other[0, place] = VOCAB.mask_id
        changed = (model.hidden(other, t) != before).any(-1)[0]
        assert bool(changed.all())


@pytest.mark.parametrize("report_first", [False, True])
def test_next_token_states_see_what_comes_before_the_patch_alone(report_first):
    model, first = patched(positions="grid"), torch.tensor([report_first])
    x = sequence(1)
    before = model.before(x, first)
    patch_of = torch.arange(16).view(4, 4).div(8, rounding_mode="floor") * 2 + torch.arange(4).div(
        2, rounding_mode="floor"
    )
    place = torch.cat([torch.tensor([0]), 1 + patch_of.flatten(), torch.tensor([5]), torch.arange(6, 13)])
    order = (place + 7) % 13 if report_first else place  # when the decoder reads each token
    for changed in range(LAYOUT.length):
        other = x.clone()
        other[0, changed] = (other[0, changed] + 1) % VOCAB.n_text
        moved = (model.before(other, first) != before).any(-1)[0]
        assert moved.tolist() == (order > order[changed]).tolist()


def test_the_head_is_split_per_code():
    model = patched()
    x, t = sequence(), torch.rand(2)
    wanted = torch.zeros_like(x, dtype=torch.bool)
    wanted[0, 3] = wanted[1, LAYOUT.text.start] = True
    got, hidden = model(x, t, wanted), model.hidden(x, t)
    rows = model.decoder.embed_tokens.weight
    torch.testing.assert_close(got.image, hidden[0, 3:4] @ rows[VOCAB.image_offset :].T)
    torch.testing.assert_close(got.text, hidden[1, LAYOUT.text.start][None] @ rows[: VOCAB.n_text].T)
