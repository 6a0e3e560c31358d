"""Words that begin a sentence have a temperature of their own: which words they are, and by which law they come."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from word_tables import CHARACTERS, said

from medim.diffusion.canvas import Canvas
from medim.diffusion.sampler import sample, seeded_generators
from medim.diffusion.schedule import get_schedule

WORDS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
FORM = "ww.www.ww."  # of a report of 10 tokens: w a word, drawn apart from all others


class Sentences:
    """Reports of three sentences."""

    def __init__(self, space):
        self.space = space

    def __call__(self, xt, t, positions):
        text = torch.full((10, 12), -50.0, dtype=torch.float64)
        for place, kind in enumerate(FORM):
            if kind == ".":
                text[place, 4] = 0.0
            else:
                text[place, 1:4] = WORDS.log()
        return said(self.space, xt, positions, text)


@pytest.fixture
def spoken(space):
    return replace(space, last_characters=CHARACTERS)


def reports(space, blank, chosen, num=600):
    x = blank(num)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    found = sample(Sentences(space), x, space, chosen, seeded_generators(range(num)), get_schedule("linear"))
    return found.x[:, space.layout.text]


def left_to_right(settings, **changes):
    return settings(**{"text_order": "raster", "text_schedule": "linear", "text_steps": 10} | changes)


def law(temperature):
    p = WORDS ** (1 / temperature)
    return (p / p.sum()).numpy()


def p_of(drawn, expected):
    counts = torch.bincount(drawn, minlength=4)[1:4].numpy()
    return chisquare(counts, expected * counts.sum()).pvalue


def test_first_words_have_their_own_law_and_others_theirs(spoken, blank, settings):
    found = reports(spoken, blank, left_to_right(settings, text_temperature=0.5, sentence_temperature=1.0))
    for place, kind in enumerate(FORM):
        if kind == "w":
            first = place == 0 or FORM[place - 1] == "."
            assert p_of(found[:, place], law(1.0 if first else 0.5)) > 1e-4
            assert p_of(found[:, place], law(0.5 if first else 1.0)) < 1e-4


def test_temperature_0_takes_the_most_probable_one_of_either(spoken, blank, settings):
    found = reports(spoken, blank, left_to_right(settings, text_temperature=0.0, sentence_temperature=1.0), 64)
    assert set(found[:, 1].tolist()) == {1} and set(found[:, 0].tolist()) == {1, 2, 3}
    found = reports(spoken, blank, left_to_right(settings, text_temperature=1.0, sentence_temperature=0.0), 64)
    assert set(found[:, 1].tolist()) == {1, 2, 3} and set(found[:, 0].tolist()) == {1}


def test_none_is_the_temperature_of_all_words(spoken, blank, settings):
    plain = reports(spoken, blank, left_to_right(settings, text_temperature=0.7, sentence_temperature=None), 32)
    same = reports(spoken, blank, left_to_right(settings, text_temperature=0.7, sentence_temperature=0.7), 32)
    assert torch.equal(plain, same)


def test_a_sentence_begins_behind_a_known_end_only(spoken, blank):
    mask = spoken.mask_id
    rows = {
        (5, 1, 4, 2, 2, 4, 0, 0, 0, 0): (0, 1, 3, 6),  # a prompt's colon, two full stops, and the end behind them
        (6, 4, 6, 1, 4, mask, mask, 4, 1, 1): (0, 5, 8),  # "1.1 a. ?? . a": a digit's full stop ends nothing
        (mask,) * 10: (0,),
    }
    x = blank(len(rows))
    x[:, spoken.layout.text] = torch.tensor(list(rows))
    canvas = Canvas(spoken, x, seeded_generators(range(len(rows))), None, None)
    found = canvas._begins_sentence(torch.arange(len(rows)))
    assert not found[:, spoken.layout.image].any()
    assert [tuple(row.nonzero()[:, 0].tolist()) for row in found[:, spoken.layout.text]] == list(rows.values())


def test_without_ends_of_sentences_there_is_nothing_to_begin(space, blank, settings):
    with pytest.raises(ValueError, match=r"sentence_temperature needs TokenSpace\.last_characters.*set it to null"):
        reports(space, blank, left_to_right(settings, sentence_temperature=1.0), 2)
    with pytest.raises(ValueError, match=r"sentence_temperature is -1\.0, out of range"):
        settings(sentence_temperature=-1.0)


@pytest.mark.parametrize("first", [None, 0.0, 1.0])
@pytest.mark.parametrize("words", [0.0, 0.7])
def test_several_draws_at_once_are_those_made_one_by_one(first, words, spoken, blank, settings):
    chosen = left_to_right(settings, text_temperature=words, sentence_temperature=first, text_top_p=0.9)
    x, generator = blank(3), torch.Generator().manual_seed(0)
    canvas, rows = Canvas(spoken, x, seeded_generators(range(3)), None, None), torch.arange(3)
    wanted = torch.rand(x.shape, generator=generator) < 0.5
    log_p = Sentences(spoken)(x, torch.ones(3), wanted)
    u = torch.rand(5, *x.shape, generator=generator, dtype=torch.float64)
    one_by_one = [canvas.draw(log_p, rows, wanted, numbers, chosen) for numbers in u]
    ids, log_prob = canvas.draw(log_p, rows, wanted, u, chosen)
    assert torch.equal(ids, torch.stack([one for one, _ in one_by_one]))
    assert torch.equal(log_prob, torch.stack([one for _, one in one_by_one]))
