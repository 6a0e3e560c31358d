"""Lengths drawn before the words: the network's own distribution of lengths, and what may not change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medim.diffusion.denoise import ModalityLogits
from medim.diffusion.length import cut
from medim.diffusion.sampler import sample, seeded_generators
from medim.diffusion.schedule import get_schedule

LENGTHS = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.0, 0.3, 0.15, 0.05, 0.0, 0.1, 0.1])  # P(0 .. 10 tokens)


class Lengths:
    """Knows P(length), and that words are uniform over ids 1..9; told the length by any EOS or word that it sees."""

    def __init__(self, space):
        self.space, self.calls = space, 0

    def __call__(self, xt, t, positions):
        self.calls += 1
        text = self.space.layout.text
        out = torch.full((len(xt), self.space.layout.length, 12), -50.0, dtype=torch.float64)
        places = torch.arange(10)
        for row, known in zip(out, xt[:, text], strict=True):
            fits = torch.tensor(
                [all(k == self.space.mask_id or (k == 0) == (i >= n) for i, k in enumerate(known)) for n in range(11)]
            )
            p = LENGTHS * fits
            p_eos = torch.stack([(p / p.sum())[: i + 1].sum() for i in places]).double()
            row[text, 0] = p_eos.clamp(1e-9, 1 - 1e-9).log()
            row[text, 1:10] = ((1 - p_eos).clamp(1e-9) / 9).log()[:, None]
        image = torch.zeros(len(xt), self.space.layout.length, 7, dtype=torch.float64)
        return ModalityLogits(out[positions & self.space.is_text], image[positions & self.space.is_image])


def run(net, x, space, chosen):
    return sample(net, x, space, chosen, seeded_generators(range(len(x))), get_schedule("linear"))


def lengths(out, space):
    return (out.x[:, space.layout.text] != 0).int().cumprod(1).sum(1)


def with_pictures(blank, space, num):
    x = blank(num)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    return x


def test_lengths_follow_the_networks_distribution(space, blank, settings):
    num = 2000
    out = run(Lengths(space), with_pictures(blank, space, num), space, settings(text_length="first", text_steps=2))
    counts = torch.bincount(lengths(out, space), minlength=11)
    assert (counts / num - LENGTHS).abs().sum() / 2 < 0.04  # pure chance gives .02 at this size
    text = out.x[:, space.layout.text]
    assert bool(((text == 0) == (torch.arange(10) >= lengths(out, space)[:, None])).all())


def test_confident_order_alone_ends_reports_too_early(space, blank, settings):
    """What drawing the length first is for: EOS is sure next to EOS, so the end creeps forward."""
    free = {"text_steps": 10, "text_schedule": "linear", "choice_temperature": 0.0}
    x = with_pictures(blank, space, 300)
    mean = float((LENGTHS * torch.arange(11)).sum())
    crept = float(lengths(run(Lengths(space), x, space, settings(**free)), space).float().mean())
    drawn = float(lengths(run(Lengths(space), x, space, settings(**free, text_length="first")), space).float().mean())
    assert drawn == pytest.approx(mean, abs=0.4)
    assert crept < mean - 0.8


def test_it_costs_one_evaluation_and_is_the_first(space, blank, settings):
    net = Lengths(space)
    out = run(net, with_pictures(blank, space, 6), space, settings(text_length="first", text_steps=1))
    assert net.calls == 2 and out.num_evaluations.tolist() == [2] * 6
    text = out.x[:, space.layout.text] == 0
    assert bool((out.steps[:, space.layout.text][text] == 0).all())
    assert bool((out.steps[:, space.layout.text][~text] == 1).all())


def test_given_words_and_a_given_end_are_respected(space, blank, settings):
    x = with_pictures(blank, space, 60)
    x[:20, 18 + 4] = 5  # a word at place 4: at least 5 tokens
    x[20:40, 18 + 6 :] = 0  # at most 6 tokens
    x[40:, 18 + 9] = 7  # the last place is a word
    out = run(Lengths(space), x, space, settings(text_length="first", text_steps=3))
    found = lengths(out, space)
    assert int(found[:20].min()) >= 5 and int(found[20:40].max()) <= 6 and bool((found[40:] == 10).all())
    assert bool((out.x[x != space.mask_id] == x[x != space.mask_id]).all())
    assert out.num_evaluations[40:].max() <= 3  # nothing to draw


@given(
    st.lists(st.floats(0, 1), min_size=5, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5), st.floats(0, 1)
)
def test_what_is_cut_is_the_end_of_the_open_places(p, open_, u):
    open_ = torch.tensor([open_])
    ends = cut(torch.tensor([p], dtype=torch.float64), open_, torch.tensor([u], dtype=torch.float64))
    assert not bool((ends & ~open_).any())
    among = ends[open_].int()
    assert bool((among.diff() >= 0).all())


def test_a_tokenizer_without_eos_is_refused(joint, settings):
    with pytest.raises(ValueError, match="text_length `first` needs"):
        run(joint, joint.blank(2), joint.space, settings(text_length="first"))
