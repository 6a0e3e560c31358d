"""The choice among draws of a step: by enumeration on a small joint distribution."""

import itertools

import pytest
import torch
from chi_square import p_value

from medim.diffusion.sampler import sample, seeded_generators
from medim.diffusion.schedule import get_schedule
from medim.diffusion.value import choose_draw, one_half_is_whole, values_of

LINEAR = get_schedule("linear")
RASTER = {"text_order": "raster", "text_schedule": "linear", "text_steps": 2, "image_steps": 1}
WEIGHT = 1.5


def run(net, x, space, settings, value, seed=0):
    return sample(net, x, space, settings, seeded_generators(range(seed, seed + len(x))), LINEAR, value=value)


def likes_ones(x):
    """The number of report tokens that are 1, half as much for 2; [MASK] is worth nothing."""
    words = x[..., 4:6]
    return ((words == 1).double() + 0.5 * (words == 2).double()).sum(-1)


def tilted(p, worth, draws):
    """(3,) probability of each id where `draws` ids come from p and one is taken in proportion to exp(WEIGHT worth)."""
    out = torch.zeros(3, dtype=torch.float64)
    for ids in itertools.product(range(3), repeat=draws):
        taken = (WEIGHT * worth[list(ids)]).softmax(0)
        for one, share in zip(ids, taken, strict=True):
            out[one] += share * p[list(ids)].prod()
    return out


@pytest.mark.parametrize(("num", "ids"), [(1, 3), (2, 3), (7, 3), (32, 2), (5, 1)])
def test_equal_draws_are_valued_once(num, ids):
    drawn = torch.randint(0, ids, (num, 6, 2), generator=torch.Generator().manual_seed(num))
    x = torch.cat([drawn, torch.full((num, 6, 3), 9)], dim=-1)  # what no draw changes
    asked = []

    def value(versions):
        asked.append(versions)
        return (versions * torch.tensor([1, 10, 1, 1, 1])).sum(-1).double()

    got, expected = values_of(value, x), value(x)
    assert torch.equal(got - got[:1], expected - expected[:1])
    *asked, _whole = asked
    different = [len({tuple(row) for row in drawn[:, sample].tolist()}) for sample in range(6)]
    assert sum(part.shape[1] for part in asked) == sum(count > 1 for count in different)
    assert sum(part.shape[0] * part.shape[1] for part in asked) <= sum(min(num, 2 * count - 2) for count in different)


def test_a_draw_is_taken_in_proportion_to_the_exponential_of_its_value():
    values = torch.tensor([[0.0], [1.0], [-2.0], [0.5]], dtype=torch.float64)
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    shares = choose_draw(values.expand(4, 10_000), WEIGHT, u).bincount(minlength=4) / 10_000
    torch.testing.assert_close(shares.double(), (WEIGHT * values[:, 0]).softmax(0), atol=2e-4, rtol=0)
    assert choose_draw(values, 0.0, torch.tensor([0.99], dtype=torch.float64)).tolist() == [3]
    assert choose_draw(values, 1e6, torch.tensor([0.99], dtype=torch.float64)).tolist() == [1]


@pytest.mark.parametrize("draws", [2, 3])
def test_reports_of_a_picture_follow_the_tilted_steps(joint, settings, draws):
    num = 4000
    x = joint.blank(num)
    x[:, 1:3] = joint.outcomes[40, :2]
    out = run(joint, x, joint.space, settings(**RASTER, draws=draws, agreement_weight=WEIGHT), likes_ones)
    worth = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    p = (joint.weights(x[:1])[0].view(9, 9)[4] / joint.weights(x[:1]).sum()).view(3, 3)
    first = tilted(p.sum(1), worth, draws)
    expected = torch.stack([first[i] * tilted(p[i] / p[i].sum(), worth, draws) for i in range(3)]).flatten()
    counts = (out.x[:, 4] * 3 + out.x[:, 5]).bincount(minlength=9).double()
    assert p_value(counts, expected * num) > 1e-3
    assert p_value(counts, p.flatten() * num) < 1e-6


def test_nothing_is_chosen_where_both_halves_are_open(joint, settings):
    open_, whole, report = joint.blank(1), joint.blank(1), joint.blank(1)
    open_[:, 1] = whole[:, 1] = joint.outcomes[40, 0]
    whole[:, 2] = joint.outcomes[40, 1]
    report[:, 4:] = joint.outcomes[40, 2:]
    halves = torch.cat([joint.blank(1), open_, whole, report, torch.cat([whole[:, :4], report[:, 4:]], 1)])
    assert one_half_is_whole(halves, joint.space).tolist() == [False, False, True, True, False]
    together = settings(draws=2, agreement_weight=99.0, text_steps=1, image_steps=1)
    out = run(joint, joint.blank(3000), joint.space, together, likes_ones)
    plain = run(joint, joint.blank(3000), joint.space, settings(text_steps=1, image_steps=1), None, seed=5000)
    shares = [(one.x[:, 4] == 1).double().mean() for one in (out, plain)]
    assert abs(shares[0] - shares[1]) < 0.05


def test_a_weight_of_0_and_a_value_that_is_the_same_leave_the_distribution(joint, settings):
    num = 3000
    for weight, value in ((0.0, likes_ones), (5.0, lambda x: torch.zeros(x.shape[:2]))):
        chosen = settings(**RASTER | {"text_lead": 1.0, "image_steps": 2, "image_order": "random"}, draws=3,
                          agreement_weight=weight)  # fmt: skip
        out = run(joint, joint.blank(num), joint.space, chosen, value)
        assert p_value(joint.counts(out.x).double(), joint.p * num) > 1e-3


@pytest.mark.parametrize("order", ["raster", "confidence"])
def test_the_end_of_a_report_is_seen_by_the_value(random_net, space, blank, settings, order):
    """With eos_fills the value sees what stands behind an end as ended; one that wants early ends gets them."""
    x = blank(6)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)

    def ended(later):
        words = later[..., space.layout.text]
        behind = (words == space.eos_id).int().cumsum(-1).bool()
        assert not bool((words == space.mask_id)[behind].any())
        return (words == space.eos_id).sum(-1)

    chosen = settings(text_order=order, text_steps=10, text_schedule="linear", eos_fills=True)
    many = settings(
        text_order=order, text_steps=10, text_schedule="linear", eos_fills=True, draws=40, agreement_weight=9.0
    )
    lengths = [
        (run(random_net, x, space, how, value).x[:, space.layout.text] != space.eos_id).sum(1).double().mean()
        for how, value in ((chosen, None), (many, ended))
    ]
    assert lengths[1] < lengths[0]


def test_a_batch_equals_its_samples_one_by_one(random_net, space, blank, settings):
    x = blank(3)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    x[2, space.layout.text] = 3
    x[2, 5:9] = space.mask_id
    chosen = settings(draws=3, agreement_weight=2.0, text_guidance=1.0)

    def value(later):
        return (later % 5).double().mean(-1)

    together = run(random_net, x, space, chosen, value)
    for row in range(3):
        alone = run(random_net, x[row : row + 1], space, chosen, value, seed=row)
        assert torch.equal(together.x[row], alone.x[0])
        assert torch.equal(together.num_evaluations[row], alone.num_evaluations[0])


def test_draws_need_a_value_and_the_maskgit_method(random_net, space, blank, settings):
    with pytest.raises(ValueError, match="nothing tells what agrees better"):
        run(random_net, blank(1), space, settings(draws=2), None)
    with pytest.raises(ValueError, match="but ancestral has one draw a step"):
        settings(draws=2, method="ancestral")
    for wrong in ({"draws": 0}, {"agreement_weight": -1.0}):
        with pytest.raises(ValueError, match=f"sampler.{next(iter(wrong))} is"):
            settings(**wrong)
