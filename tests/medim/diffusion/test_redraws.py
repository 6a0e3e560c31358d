"""Sentences said twice, or that the picture speaks against: found by hand, drawn anew by the law that is wanted."""

from dataclasses import replace

import pytest
import torch
from word_tables import CHARACTERS, said

from medim.diffusion.canvas import Canvas
from medim.diffusion.redraws import Redraws
from medim.diffusion.sampler import sample, seeded_generators
from medim.diffusion.schedule import get_schedule

WORDS = torch.tensor([0.6, 0.3, 0.1])


class Sentences:
    """Reports of `count` sentences of one word each, drawn apart from each other; with `last` given words behind."""

    def __init__(self, space, count=2):
        self.space, self.count = space, count

    def __call__(self, xt, t, positions):
        text = torch.full((10, 12), -50.0, dtype=torch.float64)
        for place in range(10):
            if place >= 2 * self.count:
                text[place, 0] = 0.0
            elif place % 2:
                text[place, 4] = 0.0
            else:
                text[place, 1:4] = WORDS.double().log()
        return said(self.space, xt, positions, text)


@pytest.fixture
def spoken(space):
    return replace(space, last_characters=CHARACTERS)


def run(net, x, space, chosen, value=None):
    return sample(net, x, space, chosen, seeded_generators(range(len(x))), get_schedule("linear"), value=value)


def with_pictures(blank, space, num):
    x = blank(num)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    return x


def left_to_right(settings, **changes):
    plain = {"text_order": "raster", "text_schedule": "linear", "text_steps": 10, "eos_fills": True}
    return settings(**plain | {"text_length": "hazard"} | changes)


@pytest.mark.parametrize("steps", [10, 4])
def test_the_law_is_the_networks_given_that_nothing_comes_twice(steps, spoken, blank, settings):
    """P(first, second) = p(first) p(second) / (1 - p(first))."""
    num = 3000
    out = run(Sentences(spoken), with_pictures(blank, spoken, num), spoken,
              left_to_right(settings, text_redraws=30, text_steps=steps))  # fmt: skip
    text = out.x[:, spoken.layout.text]
    assert bool((text[:, [1, 3]] == 4).all()) and bool((text[:, 4:] == 0).all())
    first, second = text[:, 0] - 1, text[:, 2] - 1
    assert bool((first != second).all())
    found = torch.bincount(first * 3 + second, minlength=9).view(3, 3) / num
    expected = WORDS[:, None] * WORDS / (1 - WORDS)[:, None]
    expected.fill_diagonal_(0)
    assert (found - expected).abs().sum() / 2 < 0.04  # pure chance gives .02


GAINS = torch.tensor([-0.5, 0.3, -0.1], dtype=torch.float64)  # nats of agreement that each word brings


class Liking:
    """Agreement of reports with their pictures: the sum of what their words bring, whatever the picture."""

    def __init__(self, space):
        self.text, self.asked = space.layout.text, 0

    def __call__(self, x):
        self.asked += 1
        words = x[..., self.text]
        return sum((words == word + 1).double().sum(-1) * gain for word, gain in enumerate(GAINS.tolist()))


@pytest.mark.parametrize("steps", [10, 4])
def test_sentences_that_the_picture_speaks_against_are_as_rare_as_their_agreement_says(steps, spoken, blank, settings):
    """P(word) is proportional to p(word) min(1, exp(w d)), and the second word is not the first."""
    num, weight = 3000, 3.0
    chosen = left_to_right(settings, text_redraws=60, text_steps=steps, agreement_weight=weight)
    out = run(Sentences(spoken), with_pictures(blank, spoken, num), spoken, chosen, Liking(spoken))
    text = out.x[:, spoken.layout.text]
    first, second = text[:, 0] - 1, text[:, 2] - 1
    found = torch.bincount(first * 3 + second, minlength=9).view(3, 3) / num
    tilted = WORDS.double() * (weight * GAINS).clamp(max=0).exp()
    tilted /= tilted.sum()
    expected = tilted[:, None] * tilted / (1 - tilted)[:, None]
    expected.fill_diagonal_(0)
    assert (found - expected).abs().sum() / 2 < 0.04  # pure chance gives .02
    assert float(tilted[0]) < 0.5 * float(WORDS[0])


class Ending(Sentences):
    """As its parent, but that a report of the first sentence alone has probability 0.4."""

    def __call__(self, xt, t, positions):
        out = super().__call__(xt, t, positions)
        places = positions[:, self.space.layout.text].nonzero()[:, 1]
        words = WORDS.double() * 0.6
        out.text[places == 2] = torch.tensor([0.4, *words.tolist(), *[1e-20] * 8], dtype=torch.float64).log()
        return out


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_whether_a_report_ends_is_drawn_anew_with_its_sentence(weight, spoken, blank, settings):
    """P(end | first) = e with e = 0.4 + 0.6 r e, r: how often a second sentence is rejected."""
    num = 4000
    chosen = left_to_right(settings, text_redraws=60, agreement_weight=weight)
    out = run(Ending(spoken), with_pictures(blank, spoken, num), spoken, chosen, Liking(spoken))
    accepted = WORDS.double() * (weight * GAINS).clamp(max=0).exp()  # a repeat is not
    ends = 0.4 / (1 - 0.6 * (1 - accepted.sum() + accepted))
    expected = (accepted / accepted.sum() * ends).sum()
    assert float((out.x[:, spoken.layout.text][:, 2] == 0).double().mean()) == pytest.approx(float(expected), abs=0.03)


@pytest.mark.parametrize(("length", "left"), [("free", []), ("first", [7, 8, 9])])
def test_what_stands_behind_a_rejected_sentence_goes_with_it(length, left, spoken, blank, settings):
    """Of "a. b. b. c" and an end, all at once: "b. c" and the end go, a length that was drawn first stays."""
    x = with_pictures(blank, spoken, 1)
    canvas = Canvas(spoken, x, seeded_generators([0]), None, None)
    report = torch.tensor([[1, 4, 2, 4, 2, 4, 3, 0, 0, 0]])
    everything = torch.zeros_like(x, dtype=torch.bool)
    everything[:, spoken.layout.text] = True
    filled = x.clone()
    filled[:, spoken.layout.text] = report
    canvas.fill(torch.tensor([0]), everything, filled, torch.zeros_like(canvas.log_probs), 0)
    redraws = Redraws(canvas, left_to_right(settings, text_redraws=1, text_length="hazard"), None)
    redraws.length_first = length == "first"
    redraws.judge(torch.tensor([0]), torch.zeros(x.shape, dtype=torch.float64))
    known = ~canvas.unknown[0, spoken.layout.text]
    assert known.nonzero()[:, 0].tolist() == [0, 1, 2, 3, *left]
    assert (int(redraws.accepted[0]), int(redraws.tries[0])) == (4, 1)
    canvas.fill(torch.tensor([0]), everything, filled, torch.zeros_like(canvas.log_probs), 1)
    redraws.judge(torch.tensor([0]), torch.zeros(x.shape, dtype=torch.float64))
    assert not canvas.unknown[0, spoken.layout.text].any(), "once is the most"


@pytest.mark.parametrize("steps", [10, 4])
def test_a_sample_depends_on_its_own_generator_only(steps, spoken, blank, settings):
    chosen = left_to_right(settings, text_redraws=3, text_steps=steps, agreement_weight=3.0)
    x = with_pictures(blank, spoken, 6)
    together = run(Ending(spoken), x, spoken, chosen, Liking(spoken))
    assert len(set(together.num_evaluations.tolist())) > 1
    for row in range(6):
        alone = sample(Ending(spoken), x[row : row + 1], spoken, chosen, seeded_generators([row]),
                       get_schedule("linear"), value=Liking(spoken))  # fmt: skip
        assert torch.equal(alone.x[0], together.x[row])
        assert torch.equal(alone.num_evaluations[0], together.num_evaluations[row])


def test_agreement_is_not_asked_while_both_halves_are_open_or_it_has_no_weight(spoken, blank, settings):
    liking, num = Liking(spoken), 50
    chosen = left_to_right(settings, text_redraws=9, agreement_weight=3.0, text_lead=1.0)
    run(Sentences(spoken), blank(num), spoken, chosen, liking)
    run(Sentences(spoken), with_pictures(blank, spoken, num), spoken, left_to_right(settings, text_redraws=9), liking)
    assert liking.asked == 0
    with pytest.raises(ValueError, match="nothing tells what agrees better"):
        run(Sentences(spoken), with_pictures(blank, spoken, num), spoken, chosen)


def test_what_is_recorded_is_of_the_last_draw(spoken, blank, settings):
    net, num = Sentences(spoken), 200
    out = run(net, with_pictures(blank, spoken, num), spoken, left_to_right(settings, text_redraws=30))
    text = slice(spoken.layout.text.start, spoken.layout.text.start + 4)
    words = out.x[:, text][:, [0, 2]] - 1
    assert torch.allclose(out.log_probs[:, text].sum(1), WORDS[words].double().log().sum(1), atol=1e-6)
    assert bool((out.steps[:, text].diff(dim=1) > 0).all())
    again = out.num_evaluations > 5  # four tokens and the end
    assert 0.3 < float(again.double().mean()) < 0.6  # .46 repeat themselves at first
    assert bool((out.num_evaluations[~again] == 5).all())


def test_after_so_many_redraws_what_comes_stands(spoken, blank, settings):
    num = 2000
    for redraws in (0, 1):
        out = run(Sentences(spoken), with_pictures(blank, spoken, num), spoken,
                  left_to_right(settings, text_redraws=redraws))  # fmt: skip
        text = out.x[:, spoken.layout.text]
        twice = float((text[:, 0] == text[:, 2]).double().mean())
        assert twice == pytest.approx(float((WORDS ** (2 + redraws)).sum()), abs=0.04)


def test_what_is_given_is_never_taken_back(spoken, blank, settings):
    x = with_pictures(blank, spoken, 50)
    x[:, spoken.layout.text][:, :4] = torch.tensor([2, 4, 2, 4])
    out = run(Sentences(spoken, 3), x, spoken, left_to_right(settings, text_redraws=5))
    text = out.x[:, spoken.layout.text]
    assert bool((text[:, :4] == torch.tensor([2, 4, 2, 4])).all())
    assert bool((text[:, 4] != 2).all()) and bool((text[:, 5] == 4).all())


def test_wrong_settings_are_refused(space, spoken, blank, settings):
    with pytest.raises(ValueError, match="text_redraws 2 needs maskgit, raster, count"):
        settings(text_redraws=2)
    with pytest.raises(ValueError, match=r"sampler\.text_redraws is -1, out of range"):
        settings(text_redraws=-1, text_order="raster")
    with pytest.raises(ValueError, match=r"text_redraws needs TokenSpace\.last_characters"):
        run(Sentences(space), with_pictures(blank, space, 2), space, left_to_right(settings, text_redraws=2))
