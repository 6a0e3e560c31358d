"""Orders: Halton covers the grid evenly, random is uniform, confidence is MaskGIT's."""

import pytest
import torch

from medim.diffusion.order import halton_order, scores, static_scores, van_der_corput
from medim.vocab import SequenceLayout


def test_radical_inverses_are_those_of_the_textbook():
    index = torch.arange(1, 6)
    torch.testing.assert_close(van_der_corput(index, 2), torch.tensor([1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]).double())
    torch.testing.assert_close(van_der_corput(index, 3), torch.tensor([1 / 3, 2 / 3, 1 / 9, 4 / 9, 7 / 9]).double())


@pytest.mark.parametrize("side", [1, 2, 8, 16, 32])
def test_halton_visits_every_code_once(side):
    assert sorted(halton_order(side)) == list(range(side * side))


def test_halton_spreads_better_than_raster():
    """Of the first quarter of the codes, each quadrant of the picture gets its share."""
    first = torch.tensor(halton_order(16)[:64])
    quadrant = (first // 16 // 8) * 2 + (first % 16) // 8
    assert int(torch.bincount(quadrant, minlength=4).min()) >= 14


def test_each_sample_starts_halton_elsewhere_in_the_same_cycle():
    layout = SequenceLayout(4, 64)
    static = static_scores(layout, "halton", torch.tensor([0.0, 0.5]).double())[:, layout.image]
    orders = static.sort(descending=True).indices
    assert orders[0].tolist() == list(halton_order(8))
    assert orders[1].tolist() == list(halton_order(8)[32:] + halton_order(8)[:32])


def test_halton_needs_a_square_picture():
    with pytest.raises(ValueError, match="12 codes"):
        static_scores(SequenceLayout(4, 12), "halton", torch.zeros(1).double())


def test_confidence_without_noise_is_the_log_probability():
    log_p = torch.randn(2, 5).double()
    assert torch.equal(scores("confidence", log_p, torch.rand(2, 5).double(), log_p, torch.zeros(2).double()), log_p)


def test_much_noise_makes_confidence_random():
    """The Gumbel trick: with strength r, the first token is drawn in proportion to p^(1 / r)."""
    p = torch.tensor([0.5, 0.3, 0.2]).double()
    u = torch.rand(30_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = scores("confidence", p.log().expand(30_000, 3), u, u, torch.ones(30_000).double()).argmax(-1)
    torch.testing.assert_close(torch.bincount(first, minlength=3).double() / 30_000, p, atol=0.015, rtol=0)


def test_raster_is_left_to_right():
    layout = SequenceLayout(4, 4)
    static = static_scores(layout, "raster", torch.zeros(1).double())
    assert static[0].argsort(descending=True).tolist() == list(range(10))
