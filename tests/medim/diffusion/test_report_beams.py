"""Beam search for reports of pictures, against every report that there is."""

import itertools

import pytest
import torch

from medim.diffusion.guidance import guide
from medim.diffusion.sampler import sample, seeded_generators
from medim.diffusion.schedule import get_schedule

LINEAR = get_schedule("linear")
WORDS = 10  # allowed ids; 0 is EOS


def run(net, x, space, settings, value=None):
    return sample(net, x, space, settings, seeded_generators(range(len(x))), LINEAR, value=value)


@pytest.fixture
def begun(space, blank):
    """Two samples with a picture and 8 of 10 words, so that a report has 1 + 9 + 9 * 9 + 9 ends."""
    x = blank(2)
    codes = torch.arange(32).view(2, 16) % 7
    x[:, space.layout.image] = space.vocab.from_codes(codes)
    x[:, 18:26] = torch.tensor([[4, 5, 6, 4, 4, 3, 9, 2], [1, 1, 7, 8, 3, 3, 2, 5]])
    return x


def reports(x):
    """All finished reports of one begun one, (90, L): EOS EOS, or a word and anything."""
    ends = [(0, 0), *((first, second) for first, second in itertools.product(range(1, WORDS), range(WORDS)))]
    out = x.repeat(len(ends), 1)
    out[:, 26:] = torch.tensor(ends)
    return out


def log_p(net, space, x, whole, time, w):
    """Log-probability of one finished report, word by word, by the formulas."""
    xt, total = x.clone(), 0.0
    for place in (26, 27):
        if bool((xt != space.mask_id).all()):
            break
        asked = torch.zeros(1, len(x), dtype=torch.bool)
        asked[0, place] = True
        hidden = xt.clone()
        hidden[space.is_text | space.is_image] = torch.where(
            (x != space.mask_id)[space.is_text | space.is_image], space.mask_id, xt[space.is_text | space.is_image]
        )
        masked = float((xt[26:] == space.mask_id).double().mean())
        t = torch.tensor([masked]) if time == "fraction" else torch.tensor([1.0 if place == 26 else 1 - 1 / 28])
        rows = [
            net(one[None], t, asked).text.masked_fill(~space.allowed_text, -torch.inf).log_softmax(-1)
            for one in (xt, hidden)
        ]
        p = guide(*rows, torch.tensor([w], dtype=torch.float64)) if w else rows[0]
        total += float(p[0, whole[place]])
        xt[place] = whole[place]
        if int(whole[place]) == space.eos_id:
            break
    return total


def number_of_sevens(later):
    """Words that are 7, and less for every [MASK]."""
    words = later[..., 18:]
    return (words == 7).double().sum(-1) - 0.1 * (words > 11).double().sum(-1)


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({}, None),
        ({"time": "linspace"}, None),
        ({"text_guidance": 1.5}, None),
        ({"agreement_weight": 0.7}, number_of_sevens),
        ({"agreement_weight": 2.0, "text_guidance": 0.5}, number_of_sevens),
    ],
)
def test_with_beams_enough_the_best_of_all_reports_is_found(random_net, space, settings, begun, changes, value):
    chosen = settings(text_beams=100, eos_fills=True, **changes)
    out = run(random_net, begun, space, chosen, value)
    for x, found, log_probs in zip(begun, out.x, out.log_probs, strict=True):
        every = reports(x)
        scores = torch.tensor(
            [log_p(random_net, space, x, one, chosen.time, chosen.text_guidance) for one in every],
            dtype=torch.float64,
        )  # fmt: skip
        worth = scores if value is None else scores + chosen.agreement_weight * value(every)
        best = int(worth.argmax())
        assert torch.equal(found, every[best])
        assert float(log_probs.sum()) == pytest.approx(float(scores[best]), abs=1e-6)  # times are float32
        if value is None and not changes:
            assert float(scores.exp().sum()) == pytest.approx(1, abs=1e-6)  # so these are all reports


def test_the_agreement_decides_between_reports(random_net, space, settings, begun):
    plain = run(random_net, begun, space, settings(text_beams=6, eos_fills=True))
    led = run(random_net, begun, space, settings(text_beams=6, eos_fills=True, agreement_weight=50.0), number_of_sevens)
    assert led.x[:, 26:].tolist() == [[7, 7]] * 2
    assert not bool((plain.x[:, 26:] == 7).any())


def test_more_beams_never_find_less(random_net, space, settings, blank):
    x = blank(6)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(96).view(6, 16) % 7)
    found = [
        run(random_net, x, space, settings(text_beams=k, eos_fills=True)).log_probs.sum(1).sum() for k in (2, 8, 40)
    ]
    greedy = settings(text_order="raster", text_steps=10, text_schedule="linear", text_temperature=0.0, eos_fills=True)
    assert run(random_net, x, space, greedy).log_probs.sum() <= found[0] + 1e-9 <= found[1] + 2e-9 <= found[2] + 3e-9


def test_every_beam_is_counted_and_ended_ones_are_not_asked(oracle, space, settings, blank):
    """The oracle's report has 9 words and EOS; with three beams the second evaluation on has three rows a sample."""
    x = blank(1)
    x[:, space.layout.image] = oracle.truth[:, space.layout.image]
    out = run(oracle, x, space, settings(text_beams=3, eos_fills=True))
    assert torch.equal(out.x, oracle.truth)
    assert out.steps[0, space.layout.text].tolist() == list(range(10))
    assert 1 + 2 * 9 <= int(out.num_evaluations) <= 1 + 3 * 9
    guided = run(oracle, x, space, settings(text_beams=3, eos_fills=True, text_guidance=1.0))
    assert int(guided.num_evaluations) == 2 * int(out.num_evaluations)


def test_a_batch_equals_its_samples_one_by_one(random_net, space, settings, blank):
    x = blank(3)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(48).view(3, 16) % 7)
    x[1, 18:24] = 4
    x[2, space.layout.text] = 5
    chosen = settings(text_beams=4, eos_fills=True, agreement_weight=0.5)
    together = run(random_net, x, space, chosen, number_of_sevens)
    assert not bool((together.x == space.mask_id).any())
    assert torch.equal(together.x[2], x[2]) and int(together.num_evaluations[2]) == 0
    for row in range(3):
        alone = run(random_net, x[row : row + 1], space, chosen, number_of_sevens)
        assert torch.equal(together.x[row], alone.x[0])
        assert torch.equal(together.num_evaluations[row], alone.num_evaluations[0])


def test_what_cannot_be_searched_is_named(random_net, space, settings, blank, begun):
    chosen = settings(text_beams=2, eos_fills=True)
    with pytest.raises(ValueError, match="without one every sample would be the same"):
        run(random_net, blank(1), space, chosen)
    gap = begun.clone()
    gap[0, 20] = space.mask_id
    with pytest.raises(ValueError, match="whose unknown words are their end"):
        run(random_net, gap, space, chosen)
    picture = blank(1)
    picture[:, space.layout.text] = 4
    assert torch.equal(run(random_net, picture, space, chosen).x[:, 18:], picture[:, 18:])  # pictures are drawn as ever
    for wrong in ({"method": "ancestral"}, {"eos_fills": False}, {"text_length": "first"}, {"candidates": 2}):
        with pytest.raises(ValueError, match="text_beams is 2, which does not go with"):
            settings(**{"text_beams": 2, "eos_fills": True} | wrong)
    with pytest.raises(ValueError, match="nothing tells what agrees better"):
        run(random_net, begun, space, settings(text_beams=2, eos_fills=True, agreement_weight=1.0))
