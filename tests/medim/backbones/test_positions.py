"""Grid positions: coordinates by hand, relative along rows and columns, and plain RoPE where there is no picture."""

from dataclasses import replace

import pytest
import torch
from test_mllm import LAYOUT, SETTINGS, VOCAB, build, noisy
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from medim.backbones.mllm import MLLM
from medim.backbones.positions import GridRotary, grid_coordinates, position_ids
from medim.vocab import SequenceLayout


def test_coordinates_by_hand():
    layout = SequenceLayout(n_text=2, n_image=4)  # BOI, four codes, EOI, two report tokens
    first = [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3, 3, 3], [4, 4, 4], [5, 5, 5]]
    last = [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [3, 3, 4], [3, 4, 3], [3, 4, 4], [5, 5, 5]]
    assert grid_coordinates(layout, picture_first=True).tolist() == first
    assert grid_coordinates(layout, picture_first=False).tolist() == last


def test_codes_must_be_a_square():
    with pytest.raises(ValueError, match="use flat"):
        grid_coordinates(SequenceLayout(n_text=2, n_image=6), picture_first=True)


def test_report_first_order_takes_the_second_half():
    ids = position_ids(LAYOUT, torch.tensor([False, True]))
    assert ids[0].tolist() == list(range(LAYOUT.length))
    assert ids[1].tolist() == list(range(LAYOUT.length, 2 * LAYOUT.length))


def rotary() -> tuple[GridRotary, MLLM]:
    flat = build()
    return GridRotary(flat.decoder.rotary_emb, LAYOUT), flat


def test_report_tokens_have_the_decoders_own_rotation():
    grid, flat = rotary()
    x = torch.zeros(1, 1, 8)
    # the picture takes side + 1 = 4 positions after BOI, so report token k stands at 5 + k
    own = flat.decoder.rotary_emb(x, torch.arange(5, 12)[None])
    got = grid(x, torch.arange(LAYOUT.text.start, LAYOUT.length)[None])
    torch.testing.assert_close(got, own)


def test_attention_depends_on_the_offset_on_the_grid_alone():
    grid, _ = rotary()
    q, k = (torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(i)).expand(1, 1, 9, 8) for i in (0, 1))
    cos, sin = grid(q, torch.arange(1, 10)[None])  # the nine codes
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    scores = (q @ k.transpose(-1, -2))[0, 0].unflatten(0, (3, 3)).unflatten(2, (3, 3))  # (row, column, row, column)
    torch.testing.assert_close(scores[0, 0, 1, 1], scores[1, 1, 2, 2])
    torch.testing.assert_close(scores[0, 1, 2, 0], scores[0, 2, 2, 1])
    assert not torch.isclose(scores[0, 0, 0, 1], scores[0, 0, 1, 0])


def test_the_backbone_uses_them():
    xt, t, wanted = noisy()
    flat, grid = build(), build(positions="grid")
    grid.load_state_dict(flat.state_dict())
    assert not torch.allclose(flat(xt, t, wanted).text, grid(xt, t, wanted).text)
    assert not torch.allclose(flat.hidden(xt, t), grid.hidden(xt, t))


def test_unknown_positions_are_named():
    with pytest.raises(ValueError, match="flat, grid, got 'round'"):
        MLLM(VOCAB, LAYOUT, replace(SETTINGS, positions="round"))
