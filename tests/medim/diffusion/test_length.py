"""Lengths drawn before the words: the network's own distribution of lengths, and what may not change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medim.diffusion.denoise import ModalityLogits
from medim.diffusion.length import cut, settle_ends
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


def run(net, x, space, chosen, value=None):
    return sample(net, x, space, chosen, seeded_generators(range(len(x))), get_schedule("linear"), value=value)


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


RASTER = {
    "text_order": "raster", "text_schedule": "linear", "text_steps": 10, "text_guidance": 0.0, "image_guidance": 0.0,
    "eos_fills": True,
}  # fmt: skip


def likes_words(space):
    return lambda x: ((x != 0) & (x != space.mask_id) & space.is_text).sum(-1).double()


@pytest.mark.parametrize(
    "what", [{"text_temperature": 0.4}, {"text_top_p": 0.5}, {"draws": 8, "agreement_weight": 8.0}], ids=str
)
def test_ends_drawn_by_themselves_are_the_networks_whatever_is_done_to_words(what, space, blank, settings):
    num = 500
    x = with_pictures(blank, space, num)
    value = likes_words(space) if "draws" in what else None
    hazard = run(Lengths(space), x, space, settings(**RASTER, **what, text_length="hazard"), value)
    free = run(Lengths(space), x, space, settings(**RASTER, **what, text_length="free"), value)
    total = (torch.bincount(lengths(hazard, space), minlength=11) / num - LENGTHS).abs().sum() / 2
    moved = (torch.bincount(lengths(free, space), minlength=11) / num - LENGTHS).abs().sum() / 2
    assert total < 0.08 < 0.2 < moved  # pure chance gives .035 at this size


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_ends_are_the_networks_where_several_words_come_at_once(steps, space, blank, settings):
    """With a number of its own for each of k words a report would end with 1 - (1 - P)^k."""
    num = 800
    chosen = settings(**RASTER | {"text_steps": steps}, text_length="hazard")
    out = run(Lengths(space), with_pictures(blank, space, num), space, chosen)
    assert (torch.bincount(lengths(out, space), minlength=11) / num - LENGTHS).abs().sum() / 2 < 0.07  # chance: .03
    n = lengths(out, space)
    found = out.log_probs[:, space.layout.text].sum(1)
    assert torch.allclose(found, LENGTHS[n].double().log() - n * torch.log(torch.tensor(9.0)).double(), atol=1e-5)


def test_log_probabilities_of_ends_and_words_are_those_of_the_network(space, blank, settings):
    """P(report) = P(length) / 9^length, by the chain rule."""
    out = run(Lengths(space), with_pictures(blank, space, 40), space, settings(**RASTER, text_length="hazard"))
    n = lengths(out, space)
    found = out.log_probs[:, space.layout.text].sum(1)
    assert torch.allclose(found, LENGTHS[n].double().log() - n * torch.log(torch.tensor(9.0)).double(), atol=1e-5)


def test_what_is_settled_is_all_that_is_left():
    p = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    u = torch.tensor([0.24, 0.26, 1 - 2**-53, 0.0], dtype=torch.float64)
    asked = torch.ones(4, 1, dtype=torch.bool)
    left, settled = settle_ends(ModalityLogits(p.log(), torch.zeros(0, 7)), 0, asked, u[:, None])
    want = torch.tensor([[1, 0, 0], [0, 2 / 3, 1 / 3], [1, 0, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    assert torch.allclose(left.text.exp(), want)
    assert torch.allclose(settled.exp(), torch.tensor([0.25, 0.75, 1.0, 1.0], dtype=torch.float64))


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


@pytest.mark.parametrize("text_length", ["first", "hazard"])
def test_a_tokenizer_without_eos_is_refused(joint, settings, text_length):
    with pytest.raises(ValueError, match=f"text_length `{text_length}` needs"):
        run(joint, joint.blank(2), joint.space, settings(text_length=text_length, text_order="raster"))


@pytest.mark.parametrize("what", [{"text_order": "random"}, {"text_commit": "threshold"}, {"method": "ancestral"}])
def test_an_end_drawn_at_each_word_needs_words_from_left_to_right(settings, what):
    with pytest.raises(ValueError, match="text_length hazard needs maskgit, raster, count"):
        settings(**{"text_length": "hazard", "text_order": "raster", **what})
