"""log p of reports, where it is known: two words, of which the second repeats the first.

Code 0 says left with probability 0.9, code 1 right; without a picture both are as probable. So log p given the picture
minus log p alone is log(0.9 / 0.5) of the true report and log(0.1 / 0.5) of the exchanged one. The denoiser is the true
posterior, for which the NELBO is -log p in the mean over maskings: 2 c where both words are hidden, else nothing.
"""

import math

import pytest
import torch
from torch import Tensor

from medim.diffusion.denoise import ModalityLogits
from medim.diffusion.schedule import get_schedule, nelbo_weight
from medim.diffusion.space import TokenSpace
from medim.likelihood import MaskDraws, mask_draws, report_log_p
from medim.vocab import SequenceLayout, SharedVocab

LEFT, RIGHT, BOI, EOI = range(4)
SPACE = TokenSpace(SequenceLayout(n_text=2, n_image=1), SharedVocab(4, 2), torch.ones(4, dtype=torch.bool), None)
LINEAR = get_schedule("linear")
GIVEN = {SPACE.vocab.image_offset: 0.9, SPACE.vocab.image_offset + 1: 0.1, SPACE.mask_id: 0.5}  # picture -> P(left)
NEVER = -60.0


def denoise(xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
    rows = []
    for b, place in positions.nonzero().tolist():
        other = int(xt[b, SPACE.layout.text][1 - (place - SPACE.layout.text.start)])
        left = GIVEN[int(xt[b, 1])]
        chance = {LEFT: math.log(left), RIGHT: math.log(1 - left)}
        if other != SPACE.mask_id:
            chance = {LEFT: NEVER, RIGHT: NEVER, other: 0.0}
        rows.append([chance[LEFT], chance[RIGHT], NEVER, NEVER])
    return ModalityLogits(torch.tensor(rows).reshape(-1, 4), torch.zeros(0, 2))


def sequences(word: int, code: int | None, num: int = 1) -> Tensor:
    picture = SPACE.mask_id if code is None else SPACE.vocab.image_offset + code
    return torch.tensor([[BOI, picture, EOI, word, word]] * num)


def log_p(word: int, code: int | None, draws: MaskDraws, rows: int = 50) -> Tensor:
    return report_log_p(denoise, sequences(word, code, len(draws.number)), draws, SPACE, LINEAR, rows)


@pytest.mark.parametrize("masks", [2, 16])
def test_it_is_log_p(masks):
    """Both numbers of hidden words are drawn equally often, so that nothing is left to chance."""
    draws = mask_draws([0], masks, 2)
    for code, word, chance in ((0, LEFT, 0.9), (0, RIGHT, 0.1), (None, LEFT, 0.5)):
        assert float(log_p(word, code, draws, 500)) == pytest.approx(math.log(chance), rel=1e-5)


def test_every_masking_counts_as_it_should():
    """Exactly, masking by masking: 2 c where both words are hidden."""
    draws = mask_draws([3, 4], 5, 2)
    expected = (2 * math.log(0.9) * (draws.number == 2)).double().mean(1)
    torch.testing.assert_close(log_p(LEFT, 0, draws), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["log_linear", "linear", "cosine", "quadratic"])
def test_numbers_of_hidden_tokens_weigh_as_times_do(name):
    """The integral over times of the weight times P(l of T tokens are hidden) is 1 / l, whatever the schedule."""
    schedule, tokens = get_schedule(name), 5
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    chance, weight = 1 - schedule.alpha(t), nelbo_weight(schedule, t)
    for number in range(1, tokens + 1):
        whole = (weight * chance**number * (1 - chance) ** (tokens - number)).mean() * math.comb(tokens, number)
        assert float(whole) == pytest.approx(1 / number, rel=6e-3)


def test_common_draws_leave_the_ratio_exact():
    """With 5 maskings only, both scores are off by one factor: their quotient is that of the exact log-ratios."""
    draws = mask_draws([7], 5, 2)
    s = {word: log_p(word, 0, draws) - log_p(word, None, draws) for word in (LEFT, RIGHT)}
    assert float(s[LEFT]) > 0 > float(s[RIGHT])
    exact = math.log(0.9 / 0.5) / math.log(0.1 / 0.5)
    assert float(s[LEFT] / s[RIGHT]) == pytest.approx(exact, rel=1e-5)


def test_without_a_side_in_the_picture_nothing_is_left():
    draws = mask_draws([7], 16, 2)
    assert torch.equal(log_p(LEFT, None, draws), log_p(RIGHT, None, draws))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_sequences_at_once_change_nothing(rows):
    draws = mask_draws([1, 2, 3], 5, 2)
    torch.testing.assert_close(log_p(LEFT, 1, draws, rows), log_p(LEFT, 1, draws), rtol=0, atol=0)


def test_draws_are_of_each_seed_alone_and_their_numbers_stratified():
    both, alone = mask_draws([5, 6], 16, 8), mask_draws([6], 16, 8)
    assert torch.equal(both.number[1], alone.number[0]) and torch.equal(both.rank[1], alone.rank[0])
    assert not torch.equal(both.rank[0], both.rank[1])
    assert all(sorted(row) == [n for n in range(1, 9) for _ in range(2)] for row in both.number.tolist())
    assert bool((both.rank.sort(-1).values == torch.arange(8)).all())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 1 masking"):
        mask_draws([1], 0, 2)
    with pytest.raises(ValueError, match="1 reports of 2 tokens do not fit"):
        report_log_p(denoise, sequences(LEFT, 0), mask_draws([1, 2], 4, 2), SPACE, LINEAR, 8)
    with pytest.raises(ValueError, match=r"report tokens must lie in \[0, 4\)"):
        report_log_p(denoise, sequences(SPACE.mask_id, 0), mask_draws([1], 16, 2), SPACE, LINEAR, 8)
