"""The sampler against exact distributions, oracles and its own invariants."""

import dataclasses

import pytest
import torch
from chi_square import p_value
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from medim.diffusion.sampler import official_settings, sample, sample_plan, seeded_generators
from medim.diffusion.schedule import get_schedule
from medim.diffusion.space import TokenSpace

LINEAR = get_schedule("linear")


def run(net, x, space, settings, seed=0, **more):
    return sample(net, x, space, settings, seeded_generators(range(seed, seed + len(x))), LINEAR, **more)


ONE_BY_ONE = {"text_order": "random", "image_order": "random", "text_steps": 4, "image_steps": 4}
EXACT = {
    "random": {**ONE_BY_ONE, "pool": "joint"},
    "raster": {**ONE_BY_ONE, "text_order": "raster", "image_order": "raster", "pool": "joint"},
    "report first": {**ONE_BY_ONE, "text_lead": 1.0},
    "report first, then written anew": {**ONE_BY_ONE, "text_lead": 1.0, "rewrites": 2},
    "first_hitting": {"method": "first_hitting"},
    "report first, first_hitting": {"method": "first_hitting", "text_lead": 1.0},
    "ancestral": {"method": "ancestral", "text_steps": 60, "image_steps": 60},
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_conditionals_reproduce_the_joint_distribution(joint, settings, name):
    num = 3000
    out = run(
        joint, joint.blank(num), joint.space, settings(text_schedule="linear", image_schedule="linear", **EXACT[name])
    )
    counts = joint.counts(out.x).double()
    assert p_value(counts, joint.p * num) > 1e-3
    assert 0.5 * float((counts / num - joint.p).abs().sum()) < 0.09  # pure chance gives .06 at this size


def test_exact_conditionals_reproduce_the_conditional_distribution(joint, settings):
    """Picture given: reports must follow p(report | picture)."""
    num = 3000
    x = joint.blank(num)
    x[:, 1:3] = joint.outcomes[40, :2]
    out = run(joint, x, joint.space, settings(text_order="random", text_steps=2, text_schedule="linear"))
    assert torch.equal(out.x[:, 1:3], x[:, 1:3])
    conditional = joint.weights(x[:1])[0]
    counts, possible = joint.counts(out.x).double(), conditional > 0
    assert int(counts[~possible].sum()) == 0
    expected = conditional[possible] / conditional.sum() * num
    assert p_value(counts[possible], expected) > 1e-3


def test_the_p_value_is_that_of_the_table():
    """Chi-square 3.841 at one degree of freedom is the 5 % point."""
    spread = (3.841 * 50 / 2) ** 0.5
    assert p_value(torch.tensor([50 + spread, 50 - spread]), torch.tensor([50.0, 50.0])) == pytest.approx(
        0.05, abs=1e-4
    )


def test_filling_everything_at_once_is_only_the_product_of_marginals(joint, settings):
    """One step must fail the test above: it shows that the test can see a wrong sampler."""
    num = 3000
    out = run(joint, joint.blank(num), joint.space, settings(text_steps=1, image_steps=1))
    assert p_value(joint.counts(out.x), joint.p * num) < 1e-6


def test_the_first_hit_comes_at_the_largest_of_n_uniform_times(joint, settings):
    run(joint, joint.blank(3000), joint.space, settings(method="first_hitting"))
    means = [float(t.mean()) for t in joint.times]
    assert means == pytest.approx([4 / 5, 3 / 5, 2 / 5, 1 / 5], abs=0.02)


def test_temperature_0_follows_the_argmax_chain(joint, settings):
    """Greedy, one token a step: always the surest conditional, by hand on the table."""
    x = joint.blank(1)
    greedy = settings(
        pool="joint", text_steps=4, image_steps=4, text_schedule="linear", image_schedule="linear",
        choice_temperature=0.0, text_temperature=0.0, image_temperature=0.0,
    )  # fmt: skip
    out = run(joint, x, joint.space, greedy)
    places = [1, 2, 4, 5]
    for step in range(4):
        weights = joint.weights(x)[0]
        best, where, value = max(
            (float(weights[joint.outcomes[:, c] == v].sum() / weights.sum()), c, int(v))
            for c in range(4) if int(x[0, places[c]]) == joint.space.mask_id
            for v in joint.outcomes[:, c].unique()
        )  # fmt: skip
        x[0, places[where]] = value
        assert int(out.steps[0, places[where]]) == step
        assert float(out.log_probs[0, places[where]].exp()) == pytest.approx(best)
    assert torch.equal(out.x, x)


VARIANTS = {
    "official": vars(official_settings(8)),
    "halton": {"image_order": "halton", "text_order": "raster", "text_schedule": "shift", "text_shift": 1 / 3},
    "random": {"image_order": "random", "text_order": "random", "image_schedule": "cosine", "text_steps": 3},
    "threshold": {"text_commit": "threshold", "text_commit_level": 0.3, "text_temperature": 0.7},
    "factor": {"text_commit": "factor", "image_commit": "factor", "text_commit_level": 1.0, "image_commit_level": 1.0},
    "profile": {"text_commit": "profile", "text_top_p": 0.9, "time": "linspace"},
    "guided": {"text_guidance": 2.0, "image_guidance": 1.0, "eos_fills": True},
    "lead": {"text_lead": 0.25, "text_steps": 12, "image_steps": 6},
    "report first": {"text_lead": 1.0, "text_steps": 12, "image_steps": 6, "image_guidance": 2.0},
    "ancestral": {"method": "ancestral", "text_guidance": 1.0},
    "first_hitting": {"method": "first_hitting"},
}


def canvas(space, blank, num):
    """A prompt, half a picture, a word in the middle: all kinds of conditions in one batch."""
    x = blank(num)
    if num > 0:
        x[0, 18:21] = torch.tensor([4, 5, 6])
    if num > 1:
        x[1, 1:9] = space.vocab.from_codes(torch.arange(8) % 7)
    if num > 2:
        x[2, 22] = 3
    return x


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("ancestral", "first_hitting")])
def test_tokens_whose_turn_is_known_are_the_only_ones_asked_for(
    random_net, space, blank, settings, name, monkeypatch
):  # fmt: skip
    asked = []

    def net(xt, t, positions):
        asked.append(int(positions.sum()))
        return random_net(xt, t, positions)

    x, chosen = canvas(space, blank, 4), settings(**VARIANTS[name])
    fast = run(net, x, space, chosen)
    number, asked = sum(asked), []
    monkeypatch.setattr("medim.diffusion.sampler.blind_map", lambda canvas, _: torch.zeros_like(canvas.text))
    slow = run(net, x, space, chosen)
    assert torch.equal(fast.x, slow.x) and torch.equal(fast.steps, slow.steps)
    torch.testing.assert_close(fast.log_probs, slow.log_probs, rtol=1e-12, atol=1e-12)
    assert torch.equal(fast.num_evaluations, slow.num_evaluations)
    blind = name in ("halton", "random")
    assert (number < 0.7 * sum(asked)) if blind else number == sum(asked)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_equals_its_samples_one_by_one(random_net, space, blank, settings, name):
    x = canvas(space, blank, 4)
    chosen = settings(**VARIANTS[name])
    together = run(random_net, x, space, chosen)
    for row in range(4):
        alone = run(random_net, x[row : row + 1], space, chosen, seed=row)
        for field, both, one in zip(together._fields, together, alone, strict=True):
            if field == "log_probs":  # vectorised log-softmax rounds its last bit by memory alignment
                torch.testing.assert_close(both[row], one[0], rtol=1e-12, atol=1e-12)
            else:
                assert torch.equal(both[row], one[0]), field


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_are_complete_legal_and_keep_what_was_given(random_net, space, blank, settings, name):
    x = canvas(space, blank, 4)
    out = run(random_net, x, space, settings(**VARIANTS[name]))
    given = x != space.mask_id
    assert torch.equal(out.x[given], x[given])
    assert not (out.x == space.mask_id).any()
    space.vocab.to_codes(out.x[:, space.layout.image])
    assert bool(space.allowed_text[out.x[:, space.layout.text]].all())
    assert torch.equal(out.steps >= 0, ~given)
    assert bool((out.log_probs <= 0).all()) and bool((out.log_probs[given] == 0).all())
    assert bool((out.num_evaluations >= 1).all())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_oracle_is_decoded_to_its_truth(oracle, space, blank, settings, name):
    x = blank(2)
    x[1, 18:21] = oracle.truth[0, 18:21]
    out = run(oracle, x, space, settings(**(VARIANTS[name] | {"image_guidance": 0.0, "text_guidance": 0.0})))
    assert torch.equal(out.x, oracle.truth.expand(2, -1))


def test_the_same_seed_gives_the_same_sample_and_another_another(random_net, space, blank, settings):
    runs = [run(random_net, blank(2), space, settings(), seed).x for seed in (0, 0, 9)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_modalities_have_their_own_steps_over_common_evaluations(random_net, space, blank, settings):
    out = run(random_net, blank(1), space, settings(text_steps=4, image_steps=8, text_schedule="linear",
                                                    image_schedule="linear"))  # fmt: skip
    text, image = (
        out.steps[0, part].bincount(minlength=8).tolist() for part in (space.layout.text, space.layout.image)
    )
    assert text == [0, 2, 0, 3, 0, 3, 0, 2]
    assert image == [2] * 8
    assert out.num_evaluations.tolist() == [8]


def test_the_report_may_lead(space, settings):
    plan = sample_plan(8, 16, settings(text_lead=0.25, text_schedule="linear", image_schedule="linear"))
    assert plan[0].tolist() == [1] * 8
    assert not plan[1, :2].any() and plan[1].sum() == 16


def test_a_sample_that_needs_fewer_evaluations_leaves_the_batch(random_net, space, blank, settings):
    x = blank(2)
    x[0, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    x[0, 18:26] = 3
    out = run(random_net, x, space, settings(text_steps=8, image_steps=8))
    assert random_net.batches[:3] == [2, 2, 1]
    assert out.num_evaluations[0] == 2


def test_guidance_counts_both_passes_and_zero_weight_changes_nothing(random_net, space, blank, settings):
    x = blank(1)
    x[0, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    plain = run(random_net, x, space, settings(text_steps=5, text_schedule="linear"))
    guided = run(random_net, x, space, settings(text_steps=5, text_schedule="linear", text_guidance=3.0))
    other_side = run(random_net, x, space, settings(text_steps=5, text_schedule="linear", image_guidance=3.0))
    assert (plain.num_evaluations.tolist(), guided.num_evaluations.tolist()) == ([5], [10])
    assert not torch.equal(plain.x, guided.x)
    assert torch.equal(plain.x, other_side.x)
    hidden_nothing = run(random_net, x, space, settings(text_steps=5, text_schedule="linear", text_guidance=3.0),
                         null=torch.zeros_like(x, dtype=torch.bool))  # fmt: skip
    assert torch.equal(hidden_nothing.x, plain.x) and hidden_nothing.num_evaluations.tolist() == [5]


def test_targets_leave_the_other_modality_masked(random_net, space, blank, settings):
    """p(report) without a picture."""
    x = blank(2)
    out = run(random_net, x, space, settings(), targets=space.is_text.expand(2, -1))
    assert bool((out.x[:, space.layout.image] == space.mask_id).all())
    assert not (out.x[:, space.layout.text] == space.mask_id).any()


class Times:
    """Wraps a network and keeps the times it was told."""

    def __init__(self, net):
        self.net, self.seen = net, []

    def __call__(self, xt, t, positions):
        self.seen.append(t[0].item())
        return self.net(xt, t, positions)


def test_the_time_is_the_masked_share_or_the_official_line(random_net, space, blank, settings):
    x = blank(1)
    x[0, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    linear = {"text_steps": 5, "text_schedule": "linear"}
    actual, official = Times(random_net), Times(random_net)
    run(actual, x, space, settings(**linear))
    run(official, x, space, settings(**linear, time="linspace"))
    assert actual.seen == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert official.seen == pytest.approx(torch.linspace(1, 1e-5, 6)[:5].tolist())
    x[0, 18:20] = torch.tensor([4, 5])  # a prompt is a condition ...
    x[0, 26] = 3  # ... a word elsewhere is a part of the report that is known already
    draft = Times(random_net)
    run(draft, x, space, settings(text_steps=1, text_schedule="linear"))
    assert draft.seen == pytest.approx([7 / 8])


def test_one_word_a_step_and_an_impossible_threshold_agree(random_net, space, blank, settings):
    x = blank(1)
    x[0, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    greedy = {"text_temperature": 0.0, "choice_temperature": 0.0, "text_steps": 10, "text_schedule": "linear"}
    slow = run(random_net, x, space, settings(**greedy))
    strict = run(random_net, x, space, settings(**greedy, text_commit="threshold", text_commit_level=1.1))
    loose = run(random_net, x, space, settings(**greedy, text_commit="threshold", text_commit_level=0.0))
    assert torch.equal(slow.x, strict.x) and strict.num_evaluations.tolist() == [10]
    assert loose.num_evaluations.tolist() == [1]


def test_eos_ends_the_report_but_never_before_a_given_word(random_net, space, blank, settings):
    x = blank(40)
    x[20:, 24] = 3
    out = run(random_net, x, space, settings(eos_fills=True))
    text = out.x[:, space.layout.text]
    ended = (text == 0).int().cumsum(1).bool()
    assert bool((text[ended] == 0).all())
    assert not (text[20:, :7] == 0).any()
    free = run(random_net, x, space, settings(eos_fills=False)).x[:, space.layout.text]
    assert bool(((free == 0).int().cumsum(1).bool() & (free != 0)).any())  # the net does write on after EOS


def test_a_report_written_from_left_to_right_stops_at_its_end(random_net, space, blank, settings):
    reading = {"text_order": "raster", "text_steps": 10, "text_schedule": "linear", "image_steps": 1}
    x = blank(40)
    x[:, space.layout.image] = space.vocab.from_codes(torch.arange(16) % 7)
    out, on = (run(random_net, x, space, settings(**reading, eos_fills=fills)) for fills in (True, False))
    text, whole = out.x[:, space.layout.text], on.x[:, space.layout.text]
    words = (whole != 0).int().cumprod(1).sum(1)
    assert out.num_evaluations.tolist() == (words + 1).clamp(max=10).tolist() and len(set(words.tolist())) > 3
    assert torch.equal(text, torch.where(torch.arange(text.shape[1]) < words[:, None], whole, 0))
    assert not out.log_probs[:, space.layout.text][torch.arange(text.shape[1]) > words[:, None]].any()


def test_a_report_that_comes_first_is_whole_before_the_picture_and_guides_it(random_net, space, blank, settings):
    plain = dict(text_steps=5, image_steps=3, text_schedule="linear", image_schedule="linear", text_length="free")
    out = run(random_net, blank(6), space, settings(text_lead=1.0, image_guidance=2.0, **plain))
    report, picture = out.steps[:, space.layout.text], out.steps[:, space.layout.image]
    assert report.amax(1).tolist() == [4] * 6 and picture.amin(1).tolist() == [5] * 6
    assert picture.amax(1).tolist() == [7] * 6
    assert out.num_evaluations.tolist() == [5 + 2 * 3] * 6  # nothing is given to the report, the report to the picture
    free = run(random_net, blank(6), space, settings(text_lead=1.0, **plain))
    assert torch.equal(free.x[:, space.layout.text], out.x[:, space.layout.text])
    assert not torch.equal(free.x, out.x)


def test_a_report_is_written_anew_once_its_picture_is_there(random_net, space, blank, settings):
    plain = dict(text_steps=5, image_steps=3, text_schedule="linear", image_schedule="linear", text_lead=1.0)
    once, twice = (run(random_net, blank(6), space, settings(rewrites=number, **plain)) for number in (0, 1))
    text, image = space.layout.text, space.layout.image
    assert torch.equal(once.x[:, image], twice.x[:, image]), "its picture stays"
    assert not torch.equal(once.x[:, text], twice.x[:, text])
    assert torch.equal(once.steps[:, image], twice.steps[:, image])
    assert twice.steps[:, text].amin(1).tolist() == [8] * 6 and twice.steps[:, text].amax(1).tolist() == [12] * 6
    assert (twice.num_evaluations - once.num_evaluations).tolist() == [5] * 6
    with_picture = blank(6)
    with_picture[:, image] = once.x[:, image]
    again = run(random_net, with_picture, space, settings(rewrites=1, **plain))
    assert again.num_evaluations.tolist() == [5] * 6, "a picture that was given is what the report was written for"


def test_nothing_to_do_is_no_evaluation(oracle, space, settings):
    for method in ("maskgit", "ancestral", "first_hitting"):
        out = run(oracle, oracle.truth.clone(), space, settings(method=method))
        assert torch.equal(out.x, oracle.truth) and out.num_evaluations.tolist() == [0]


@given(st.integers(0, 20), st.integers(0, 40), st.integers(1, 24), st.integers(1, 24), st.sampled_from([0.0, 0.3]))
@given_settings(max_examples=100, deadline=None)
def test_plans_hold_every_token_and_no_idle_evaluation(num_text, num_image, text_steps, image_steps, lead):
    chosen = dataclasses.replace(official_settings(8), pool="modality", text_steps=text_steps, image_steps=image_steps,
                                 text_lead=lead)  # fmt: skip
    plan = sample_plan(num_text, num_image, chosen)
    assert plan.sum(1).tolist() == [num_text, num_image]
    assert plan.any(0).all()
    assert plan.shape[1] <= max(text_steps, image_steps)


def test_wrong_input_is_refused_with_a_remedy(random_net, space, blank, settings):
    with pytest.raises(ValueError, match="2 samples need as many generators, got 1"):
        sample(random_net, blank(2), space, settings(), seeded_generators([0]), LINEAR)
    x = blank(1)
    x[0, 0] = space.mask_id
    with pytest.raises(ValueError, match="BOI and EOI"):
        run(random_net, x, space, settings())
    with pytest.raises(ValueError, match="tokens must be"):
        run(random_net, blank(1)[:, :5], space, settings())
    x = blank(1)
    x[0, 3] = 2
    with pytest.raises(ValueError, match="image positions"):
        run(random_net, x, space, settings())
    with pytest.raises(ValueError, match="targets must be bool"):
        run(random_net, blank(1), space, settings(), targets=blank(1))
    with pytest.raises(ValueError, match="forbids all"):
        TokenSpace(space.layout, space.vocab, torch.zeros(12, dtype=torch.bool), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_order": "halton"}, r"text_order is 'halton'"),
        ({"image_steps": 0}, "image_steps is 0"),
        ({"text_top_p": 0.0}, "text_top_p is 0.0"),
        ({"pool": "joint", "text_steps": 4}, "text_steps is 4 and image_steps is 8"),
        ({"text_lead": 0.2, "text_commit": "factor"}, "text_lead 0.2"),
        ({"text_lead": 1.1}, "text_lead is 1.1"),
        ({"rewrites": 1}, r"rewrites is 1, which needs .*text_lead to 1, not 0\.0"),
        ({"rewrites": -1}, "rewrites is -1"),
    ],
)
def test_contradicting_settings_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_official_settings_are_those_of_the_official_code():
    chosen = official_settings(128)
    assert (chosen.pool, chosen.choice_temperature, chosen.image_guidance, chosen.guidance_ramp) == (
        "joint", 10.0, 5.0, "linear")  # fmt: skip
    plan = sample_plan(256, 1024, chosen)[0].tolist()
    assert plan[:6] + plan[-4:] == [1, 1, 2, 2, 3, 3, 16, 16, 16, 12]
