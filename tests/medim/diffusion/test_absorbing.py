"""The absorbing process against its transition matrices, and the NELBO against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from medim.diffusion.absorbing import (
    Nelbo,
    cap_weight,
    complement,
    corrupt,
    draw_masked,
    join,
    nelbo,
    nonempty_chance,
    q_xt,
    sample_t,
    subs,
)  # fmt: skip
from medim.diffusion.ancestral import unmask_chance
from medim.diffusion.denoise import ModalityLogits
from medim.diffusion.schedule import get_schedule

LINEAR = get_schedule("linear")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def transition(alpha: float, num: int) -> torch.Tensor:
    """Q_t of Eq. 3 for `num` ids, of which the last is [MASK]; rows are the state before."""
    e_m = torch.zeros(num, dtype=torch.float64)
    e_m[-1] = 1
    return alpha * torch.eye(num, dtype=torch.float64) + (1 - alpha) * torch.outer(
        torch.ones(num, dtype=torch.float64), e_m
    )


def test_marginals_are_those_of_the_product_of_matrices():
    """Eq. 4: a product of steps with retention a_i keeps a token with probability prod a_i, and [MASK] stays."""
    steps, num = [0.9, 0.7, 0.8], 4
    q_bar = transition(0.9, num) @ transition(0.7, num) @ transition(0.8, num)
    torch.testing.assert_close(q_bar, transition(math.prod(steps), num))
    x0 = torch.randint(0, 3, (4000, 5), generator=gen())
    chance = torch.full((4000,), 1 - math.prod(steps), dtype=torch.float64)
    xt = q_xt(x0, draw_masked(torch.ones_like(x0, dtype=torch.bool), chance, False, gen(1)), None, 3)
    for value in range(3):
        seen = torch.bincount(xt[x0 == value], minlength=4).double()
        torch.testing.assert_close(seen / seen.sum(), q_bar[value], atol=0.02, rtol=0)


def test_unmasking_posterior_is_bayes_rule_on_the_matrices():
    """q(x_s | x_t = m, x_0) = Q_(t given s)[x_s, m] Q_bar_s[x_0, x_s] / Q_bar_t[x_0, m]."""
    alpha_s, alpha_t, num, x0 = 0.8, 0.3, 4, 1
    step = transition(alpha_t / alpha_s, num)
    posterior = step[:, -1] * transition(alpha_s, num)[x0] / transition(alpha_t, num)[x0, -1]
    chance = float(unmask_chance(torch.tensor(alpha_s, dtype=torch.float64), torch.tensor(alpha_t).double()))
    expected = torch.tensor([0, chance, 0, 1 - chance], dtype=torch.float64)
    torch.testing.assert_close(posterior, expected, atol=1e-7, rtol=0)


def test_conditioned_masking_has_the_conditional_distribution():
    """All 2^3 - 1 non-empty outcomes among 3 maskable of 4 tokens, each at its exact probability."""
    p, rows = 0.2, 40_000
    maskable = torch.tensor([True, False, True, True]).expand(rows, -1)
    masked = draw_masked(maskable, torch.full((rows,), p, dtype=torch.float64), True, gen(3))
    assert not masked[:, 1].any()
    code = (masked[:, [0, 2, 3]] * torch.tensor([4, 2, 1])).sum(1)
    seen = torch.bincount(code, minlength=8).double() / rows
    for outcome in range(8):
        ones = bin(outcome).count("1")
        exact = p**ones * (1 - p) ** (3 - ones) / (1 - (1 - p) ** 3) if ones else 0.0
        assert float(seen[outcome]) == pytest.approx(exact, abs=0.008)


@given(st.integers(0, 10**6), st.sampled_from([1e-9, 1e-3, 0.5, 1.0]))
@given_settings(max_examples=40, deadline=None)
def test_every_row_with_a_maskable_token_has_a_masked_one(seed, chance):
    maskable = torch.rand(8, 5, generator=gen(seed)) < 0.3
    masked = draw_masked(maskable, torch.full((8,), chance, dtype=torch.float64), True, gen(seed + 1))
    assert torch.equal(masked.any(1), maskable.any(1))
    assert not (masked & ~maskable).any()
    assert bool(torch.isfinite(nonempty_chance(maskable, torch.full((8,), chance, dtype=torch.float64))).all())


def test_times_are_stratified_over_the_whole_batch():
    t = sample_t(64, 1e-3, gen()).sort().values
    assert float(t[0]) >= 1e-3 and float(t[-1]) <= 1
    assert float(t.diff().max()) <= 2 / 64
    parts = torch.cat([sample_t(16, 0.0, gen(part), (part, 4)) for part in range(4)])
    assert torch.equal((parts * 64).long().sort().values, torch.arange(64))


def test_times_are_a_function_of_the_generator():
    assert torch.equal(sample_t(8, 1e-3, gen(5)), sample_t(8, 1e-3, gen(5)))
    assert not torch.equal(sample_t(8, 1e-3, gen(5)), sample_t(8, 1e-3, gen(6)))


def batch(space, num, seed=0):
    x0 = torch.randint(0, 10, (num, space.layout.length), generator=gen(seed))
    x0[:, space.layout.image] = space.vocab.from_codes(torch.randint(0, 7, (num, 16), generator=gen(seed + 1)))
    maskable = (space.is_text | space.is_image).expand(num, -1)
    return x0, maskable


def uniform(space, noisy):
    num = [int((noisy.masked & map_).sum()) for map_ in (space.is_text, space.is_image)]
    return ModalityLogits(torch.zeros(num[0], 12), torch.zeros(num[1], 7))


def weigh(space, logits, noisy, weighting="nelbo", cap=5.0, text=1.0, image=1.0) -> Nelbo:
    return nelbo(logits, noisy, space, weighting=weighting, cap=cap, text_weight=text, image_weight=image)


@pytest.mark.parametrize("name", ["log_linear", "linear", "cosine", "quadratic"])
@pytest.mark.parametrize("at_least_one", [True, False])
def test_a_uniform_model_costs_log_v_nats_per_token(space, name, at_least_one):
    x0, maskable = batch(space, 4096)
    t = sample_t(4096, 1e-4, gen(2))
    noisy = corrupt(x0, maskable, None, t, get_schedule(name), space.mask_id, gen(3), at_least_one=at_least_one)
    out = weigh(space, uniform(space, noisy), noisy)
    logs = out.logs()
    assert float(logs["nelbo_text"]) == pytest.approx(math.log(12), rel=0.03)
    assert float(logs["nelbo_image"]) == pytest.approx(math.log(7), rel=0.03)
    assert float(out.loss) == pytest.approx((10 * math.log(12) + 16 * math.log(7)) / 26, rel=0.03)


def test_the_condition_on_a_masked_token_lowers_the_variance_and_not_the_mean(space):
    x0, maskable = batch(space, 4096)
    t = sample_t(4096, 1e-3, gen(2))
    values = []
    for flag in (True, False):
        noisy = corrupt(x0, maskable, None, t, LINEAR, space.mask_id, gen(4), at_least_one=flag)
        values.append(weigh(space, uniform(space, noisy), noisy).image)
    assert float(values[0].std()) < 0.9 * float(values[1].std())


def test_exact_conditionals_cost_the_entropy_of_the_joint(joint):
    """E[NELBO] of the perfect network over x0 ~ p is the entropy of p, whatever the schedule."""
    num = 20_000
    which = torch.multinomial(joint.p, num, replacement=True, generator=gen(1))
    x0 = joint.blank(num)
    x0[:, [1, 2, 4, 5]] = joint.outcomes[which]
    maskable = (joint.space.is_text | joint.space.is_image).expand(num, -1)
    noisy = corrupt(x0, maskable, None, sample_t(num, 1e-4, gen(2)), LINEAR, joint.space.mask_id, gen(3))
    out = weigh(joint.space, joint(noisy.xt, noisy.t, noisy.masked), noisy)
    entropy = -float((joint.p * joint.p.log()).sum())
    assert float((out.text + out.image).mean()) == pytest.approx(entropy, rel=0.02)


def test_complementary_masks_cover_each_token_once_and_are_unbiased(space):
    x0, maskable = batch(space, 4096)
    for name in ("linear", "log_linear", "cosine"):
        schedule = get_schedule(name)
        t = sample_t(4096, 1e-3, gen(2))
        first = corrupt(x0, maskable, None, t, schedule, space.mask_id, gen(3), at_least_one=False)
        second = complement(first, None, schedule, space.mask_id)
        assert torch.equal(first.masked ^ second.masked, maskable)
        assert not (first.masked & second.masked).any()
        both = join(first, second)
        out = weigh(space, uniform(space, both), both)
        assert float(out.logs()["nelbo_text"]) == pytest.approx(math.log(12), rel=0.05)
        torch.testing.assert_close(
            1 - schedule.alpha(second.t.double()), schedule.alpha(first.t.double()).clamp(max=1 - schedule.alpha(
                torch.ones(1).double())), atol=1e-6, rtol=0)  # fmt: skip


def test_a_conditioned_draw_has_no_complement(space):
    x0, maskable = batch(space, 4)
    noisy = corrupt(x0, maskable, None, sample_t(4, 1e-3, gen()), LINEAR, space.mask_id, gen())
    with pytest.raises(ValueError, match="at_least_one"):
        complement(noisy, None, LINEAR, space.mask_id)


def test_hidden_tokens_are_masked_without_loss_and_kept_ones_stay(space):
    x0, _ = batch(space, 64)
    maskable, hidden = space.is_text.expand(64, -1), space.is_image.expand(64, -1)
    noisy = corrupt(x0, maskable, hidden, sample_t(64, 1e-3, gen()), LINEAR, space.mask_id, gen())
    assert bool((noisy.xt[hidden] == space.mask_id).all())
    assert not (noisy.masked & ~maskable).any()
    assert torch.equal(noisy.xt[~hidden & ~noisy.masked], x0[~hidden & ~noisy.masked])
    out = weigh(space, uniform(space, noisy), noisy)
    assert not out.image.any() and int(out.image_tokens.sum()) == 0
    assert set(out.logs()) == {"nelbo_text"}


def test_the_loss_does_not_depend_on_the_order_of_samples_or_tokens(space):
    """Permute the samples, and the codes and report tokens within their modality: a per-token model loses the same."""
    x0, maskable = batch(space, 16)
    noisy = corrupt(x0, maskable, None, sample_t(16, 1e-3, gen()), LINEAR, space.mask_id, gen())
    table = torch.randn(space.vocab.size, 12, generator=gen(7))

    def logits(noisy_):
        text, image = (noisy_.x0[noisy_.masked & map_] for map_ in (space.is_text, space.is_image))
        return ModalityLogits(table[text], table[image][:, :7])

    rows = torch.randperm(16, generator=gen(8))
    columns = torch.cat([torch.tensor([0]), 1 + torch.randperm(16, generator=gen(9)), torch.tensor([17]),
                         18 + torch.randperm(10, generator=gen(10))])  # fmt: skip
    moved = noisy._replace(**{
        name: getattr(noisy, name)[rows][:, columns] for name in ("x0", "xt", "maskable", "masked")
    }, **{name: getattr(noisy, name)[rows] for name in ("t", "weight", "chance")})  # fmt: skip
    before, after = weigh(space, logits(noisy), noisy), weigh(space, logits(moved), moved)
    assert float(before.loss) == pytest.approx(float(after.loss), rel=1e-6)
    torch.testing.assert_close(before.text[rows], after.text)
    torch.testing.assert_close(before.image[rows], after.image)


def test_softmin_cap_is_the_weight_of_unidisc_and_min_cap_the_minimum():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(cap_weight(1 / t, "softmin_cap", 5.0), 1 / (t + (1 - t) / 5))
    assert torch.equal(cap_weight(1 / t, "min_cap", 5.0), (1 / t).clamp(max=5))
    assert torch.equal(cap_weight(1 / t, "nelbo", 0.0), 1 / t)
    with pytest.raises(ValueError, match="'snr'"):
        cap_weight(t, "snr", 5.0)
    with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
        cap_weight(t, "min_cap", 0.5)


def test_caps_and_modality_weights_change_the_loss_only(space):
    x0, maskable = batch(space, 32)
    noisy = corrupt(x0, maskable, None, sample_t(32, 1e-3, gen()), LINEAR, space.mask_id, gen())
    logits = uniform(space, noisy)
    plain, capped = weigh(space, logits, noisy), weigh(space, logits, noisy, "min_cap", 1.0)
    assert torch.equal(plain.text, capped.text) and torch.equal(plain.image, capped.image)
    only_text = weigh(space, logits, noisy, text=1.0, image=0.0)
    assert float(only_text.loss) == pytest.approx(float(plain.text.sum() / plain.text_tokens.sum()), rel=1e-6)
    by_hand = (noisy.masked & space.is_text).sum(1) * math.log(12) + (noisy.masked & space.is_image).sum(1) * math.log(
        7
    )
    assert float(capped.loss) == pytest.approx(float((by_hand * noisy.chance).sum() / (32 * 26)), rel=1e-6)


def test_gradients_reach_masked_logits_with_the_right_sign(space):
    x0, maskable = batch(space, 8)
    noisy = corrupt(x0, maskable, None, sample_t(8, 1e-3, gen()), LINEAR, space.mask_id, gen())
    zero = uniform(space, noisy)
    logits = ModalityLogits(zero.text.requires_grad_(), zero.image.requires_grad_())
    weigh(space, logits, noisy).loss.backward()
    truth = x0[noisy.masked & space.is_text][:, None]
    assert bool((logits.text.grad.gather(1, truth) < 0).all())  # descent raises log p of the truth


def test_subs_gives_nothing_to_forbidden_ids(space):
    out = subs(ModalityLogits(torch.randn(6, 12), torch.randn(3, 7)), space.allowed_text)
    assert out.text.dtype == torch.float64 and bool(out.text[:, 10:].isneginf().all())
    torch.testing.assert_close(out.text.exp().sum(-1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(out.image.exp().sum(-1), torch.ones(3, dtype=torch.float64))
