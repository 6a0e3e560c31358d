"""Training states: how many, and what each gives, hides and masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from medim.diffusion.states import (
    JOINT,
    PICTURE_ALONE,
    PICTURE_GIVEN_REPORT,
    REPORT_ALONE,
    REPORT_GIVEN_PICTURE,
    STATES,
    all_masked_times,
    assign_states,
    state_maps,
)  # fmt: skip

MIX = {"joint": 0.4, "report_given_picture": 0.25, "picture_given_report": 0.25, "report_alone": 0.1}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_whole_shares_are_exact():
    for seed in range(20):
        counts = torch.bincount(assign_states(MIX, 40, gen(seed)), minlength=5)
        assert counts.tolist() == [16, 10, 10, 4, 0]


@given(st.integers(0, 10**6), st.integers(1, 33))
@given_settings(max_examples=60, deadline=None)
def test_counts_are_the_shares_rounded_up_or_down(seed, num):
    counts = torch.bincount(assign_states(MIX, num, gen(seed)), minlength=5)
    assert int(counts.sum()) == num
    for name, count in zip(STATES, counts.tolist(), strict=True):
        assert abs(count - MIX.get(name, 0) * num) < 1 + 1e-6


def test_small_batches_are_right_on_average():
    counts = sum(torch.bincount(assign_states(MIX, 3, gen(seed)), minlength=5) for seed in range(2000))
    torch.testing.assert_close(counts / 6000, torch.tensor([MIX.get(n, 0.0) for n in STATES]), atol=0.02, rtol=0)


def test_the_order_is_shuffled_and_reproducible():
    assert torch.equal(assign_states(MIX, 40, gen(1)), assign_states(MIX, 40, gen(1)))
    assert not torch.equal(assign_states(MIX, 40, gen(1)), assign_states(MIX, 40, gen(2)))


@pytest.mark.parametrize("bad", [{"jiont": 1.0}, {"joint": 0.5}, {"joint": 1.5, "report_alone": -0.5}])
def test_wrong_mixtures_are_refused(bad):
    with pytest.raises(ValueError, match="training states"):
        assign_states(bad, 4, gen())


def maps(space, state, keep=0.0, dropout=0.0, known=0.0, cut=0.0, num=64):
    states = torch.full((num,), state)
    return state_maps(states, torch.full((num,), 3), torch.full((num,), 6), space, keep, known, cut, dropout, gen())


def test_the_maps_are_a_partition(space):
    for state in range(5):
        out = maps(space, state, 0.5, 0.5)
        assert bool((out.maskable.int() + out.hidden.int() + out.keep.int() == 1).all())
        assert bool(out.keep[:, [0, 17]].all())  # BOI and EOI


def test_each_state_gives_and_hides_what_its_name_says(space):
    text, image, none = space.is_text, space.is_image, torch.zeros(space.layout.length, dtype=torch.bool)
    expected = {
        JOINT: (text | image, none),
        REPORT_GIVEN_PICTURE: (text, none),
        PICTURE_GIVEN_REPORT: (image, none),
        REPORT_ALONE: (text, image),
        PICTURE_ALONE: (image, text),
    }
    for state, (maskable, hidden) in expected.items():
        out = maps(space, state)
        assert torch.equal(out.maskable, maskable.expand(64, -1))
        assert torch.equal(out.hidden, hidden.expand(64, -1))
        assert bool((out.state == state).all())


def test_the_prompt_is_kept_with_its_probability_where_the_report_is_noisy(space):
    for state in (JOINT, REPORT_GIVEN_PICTURE, REPORT_ALONE):
        kept = maps(space, state, keep=0.3, num=4000).keep[:, space.layout.text]
        assert not kept[:, 3:].any()
        assert torch.equal(kept[:, 0], kept[:, 2])
        assert float(kept[:, 0].float().mean()) == pytest.approx(0.3, abs=0.03)
    assert bool(maps(space, PICTURE_ALONE, keep=1.0).hidden[:, space.layout.text].all())


def test_the_end_is_kept_with_its_probability_where_the_report_is_noisy(space):
    for state in (JOINT, REPORT_GIVEN_PICTURE, REPORT_ALONE):
        kept = maps(space, state, known=0.4, num=4000).keep[:, space.layout.text]
        assert not kept[:, :6].any()
        assert torch.equal(kept[:, 6], kept[:, -1])
        assert float(kept[:, 6].float().mean()) == pytest.approx(0.4, abs=0.03)
    assert bool(maps(space, PICTURE_ALONE, known=1.0).hidden[:, space.layout.text].all())


def test_a_report_that_is_asked_for_is_cut_anywhere_with_its_probability(space):
    """Every place is as probable as another, the end or not: where it lies says nothing of the report."""
    length = space.layout.n_text
    for state in (REPORT_GIVEN_PICTURE, REPORT_ALONE):
        out = maps(space, state, known=0.3, cut=0.5, num=30_000)
        assert not out.covered[:, : space.layout.text.start].any()
        covered, kept = (part[:, space.layout.text] for part in (out.covered, out.keep))
        assert bool((out.covered <= out.maskable).all()) and not (covered & kept).any()
        number = covered.sum(1)
        assert torch.equal(covered, torch.arange(length) >= (length - number)[:, None]), "all from a place on"
        share = torch.bincount(number, minlength=length + 1) / len(number)
        torch.testing.assert_close(share[1:], torch.full((length,), 0.5 / (length + 1)), rtol=0, atol=6e-3)
        assert float(kept[:, 6].float().mean()) == pytest.approx(0.3, abs=0.01)
    for state in (JOINT, PICTURE_GIVEN_REPORT, PICTURE_ALONE):
        assert not maps(space, state, cut=1.0).covered.any()
    prompt = maps(space, REPORT_ALONE, keep=1.0, cut=1.0).covered[:, space.layout.text]
    assert not prompt[:, :3].any() and prompt[:, -1].any()
    with pytest.raises(ValueError, match=r"may sum to 1 at most, got 0\.6 and 0\.5"):
        maps(space, JOINT, known=0.6, cut=0.5)


def test_condition_dropout_hides_the_whole_condition(space):
    out = maps(space, REPORT_GIVEN_PICTURE, dropout=0.25, num=4000)
    dropped = out.state == REPORT_ALONE
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(out.hidden, dropped[:, None] & space.is_image)
    assert bool((maps(space, PICTURE_GIVEN_REPORT, dropout=1.0).state == PICTURE_ALONE).all())
    assert bool((maps(space, JOINT, dropout=1.0).state == JOINT).all())


def test_a_probability_above_one_is_refused(space):
    with pytest.raises(ValueError, match=r"prompt_keep.*1\.5"):
        maps(space, JOINT, keep=1.5)


def test_a_share_of_named_states_is_masked_whole_and_the_others_keep_their_times():
    state = assign_states(MIX, 8000, gen())
    t = torch.rand(8000, generator=gen(1), dtype=torch.float64)
    out = all_masked_times(t, state, {"report_given_picture": 0.5, "picture_given_report": 1.0}, gen(2))
    reports = out[state == REPORT_GIVEN_PICTURE]
    assert float((reports == 1).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert bool((out[state == PICTURE_GIVEN_REPORT] == 1).all())
    others = (state == JOINT) | (state == REPORT_ALONE)
    assert torch.equal(out[others], t[others])
    assert torch.equal(out[out != 1], t[out != 1])


def test_without_shares_times_and_the_generator_stay():
    t, generator = torch.rand(8, dtype=torch.float64), gen(3)
    assert torch.equal(all_masked_times(t, torch.zeros(8, dtype=torch.int64), {"joint": 0.0}, generator), t)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=gen(3)))
