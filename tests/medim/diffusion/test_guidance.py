"""Guidance and drawing."""

import math

import pytest
import torch

from medim.diffusion.draw import draw_ids, gumbel, uniforms
from medim.diffusion.guidance import Null, guidance_weight, guide, predict


def log_p(rows, ids, seed=0):
    return torch.randn(rows, ids, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


def test_guidance_is_the_formula_renormalised():
    cond, uncond, w = log_p(4, 6), log_p(4, 6, 1), torch.tensor([0.0, 0.5, 2.0, 5.0]).double()
    by_hand = cond.exp() ** (1 + w[:, None]) / uncond.exp() ** w[:, None]
    torch.testing.assert_close(guide(cond, uncond, w).exp(), by_hand / by_hand.sum(-1, keepdim=True))


def test_no_weight_is_no_guidance_to_the_bit():
    cond = log_p(4, 6)
    assert torch.equal(guide(cond, log_p(4, 6, 1), torch.zeros(4).double()), cond)


def test_impossible_ids_stay_impossible():
    cond, uncond = log_p(1, 4), log_p(1, 4, 1)
    cond[0, 0] = uncond[0, 0] = uncond[0, 1] = -math.inf
    out = guide(cond, uncond, torch.ones(1).double())
    assert float(out[0, 0]) == -math.inf
    assert float(out[0, 1]) == pytest.approx(0)  # possible with the condition only
    assert not out.isnan().any()


def test_the_linear_ramp_is_the_official_one():
    clock = torch.tensor([1.0, 0.25, 0.0]).double()
    assert guidance_weight(5.0, "linear", clock).tolist() == [0.0, 3.75, 5.0]
    assert guidance_weight(5.0, "constant", clock).tolist() == [5.0] * 3


def test_two_branches_in_one_batch_equal_two_calls(random_net, space, blank):
    """Only samples that need it get a second pass; text and pictures have weights of their own."""
    x = blank(3)
    x[:2, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    wanted, t = x == space.mask_id, torch.full((3,), 0.5)
    null = Null(blank(3), torch.tensor([2.0, 0.0, 2.0]).double(), torch.zeros(3).double())
    got = predict(random_net, x, t, wanted, space, null)
    assert random_net.batches == [4]  # sample 1 has no weight, sample 2 nothing to take away
    cond = predict(random_net, x, t, wanted, space, None)
    other = random_net(null.xt[:1], t[:1], wanted[:1])
    guided = 3 * cond.text[:10, :10] - 2 * other.text[:, :10]
    torch.testing.assert_close(got.text[:10, :10], guided.log_softmax(-1))
    torch.testing.assert_close(got.text[10:], cond.text[10:])
    torch.testing.assert_close(got.image, cond.image)
    assert bool(got.text[:, 10:].isneginf().all())


def test_a_weight_of_what_is_not_wanted_asks_for_no_second_pass(random_net, space, blank):
    x, t = blank(2), torch.full((2,), 0.5)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    pictures_only = Null(blank(2), torch.zeros(2).double(), torch.full((2,), 3.0).double())
    got = predict(random_net, x, t, x == space.mask_id, space, pictures_only)
    assert random_net.batches == [2]
    torch.testing.assert_close(got.text, predict(random_net, x, t, x == space.mask_id, space, None).text)


def test_draws_follow_the_distribution_at_any_temperature():
    p = torch.tensor([0.6, 0.3, 0.1, 0.0]).double()
    u = torch.rand(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (1.0, 0.5, 2.0):
        ids = draw_ids(p.log().expand(40_000, 4), u, temperature, 1.0)
        tempered = p ** (1 / temperature)
        seen = torch.bincount(ids, minlength=4).double() / 40_000
        torch.testing.assert_close(seen, tempered / tempered.sum(), atol=0.01, rtol=0)
        assert int((ids == 3).sum()) == 0


def test_the_edges_of_the_unit_interval_draw_possible_ids_only():
    p = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).double()
    assert draw_ids(p.log(), torch.zeros(1).double(), 1.0, 1.0).tolist() == [1]
    assert draw_ids(p.log(), torch.ones(1).double() - 2.0**-53, 1.0, 1.0).tolist() == [2]
    assert draw_ids(p.log(), torch.ones(1).double(), 1.0, 1.0).tolist() == [2]


def test_temperature_0_takes_the_best_and_top_p_the_nucleus():
    p = torch.tensor([0.2, 0.5, 0.3]).double().log().expand(2000, 3)
    u = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert set(draw_ids(p, u, 0.0, 1.0).tolist()) == {1}
    assert set(draw_ids(p, u, 1.0, 0.4).tolist()) == {1}
    assert set(draw_ids(p, u, 1.0, 0.6).tolist()) == {1, 2}
    assert set(draw_ids(p, u, 1.0, 0.9).tolist()) == {0, 1, 2}
    assert draw_ids(torch.empty(0, 3), torch.empty(0), 0.0, 1.0).tolist() == []


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_several_draws_at_once_are_those_made_one_by_one(temperature, top_p):
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(50, 30, generator=generator, dtype=torch.float64).log_softmax(-1)
    u = torch.rand(7, 50, generator=generator, dtype=torch.float64)
    one_by_one = [draw_ids(log_p, numbers, temperature, top_p) for numbers in u]
    assert torch.equal(draw_ids(log_p, u, temperature, top_p), torch.stack(one_by_one))
    assert draw_ids(log_p[:0], u[:, :0], temperature, top_p).shape == (7, 0)


def test_gumbel_numbers_are_finite_and_have_the_known_mean():
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u[0] = 0
    noise = gumbel(u)
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)


def test_numbers_of_a_sample_do_not_depend_on_its_batch():
    def make():
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    both = uniforms(make(), 2, 5, torch.device("cpu"))
    alone = uniforms(make()[1:], 2, 5, torch.device("cpu"))
    assert torch.equal(both[:, 1:], alone)
