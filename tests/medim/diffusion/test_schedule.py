"""alpha, its derivative, its inverse."""

import pytest
import torch

from medim.diffusion.schedule import SCHEDULES, get_schedule, nelbo_weight, sigma

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_dalpha_is_the_derivative_of_alpha(name):
    t = T.clone().requires_grad_()
    schedule = get_schedule(name)
    (grad,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(grad, schedule.dalpha(T))


@pytest.mark.parametrize("name", SCHEDULES)
def test_everything_is_clean_at_0_and_masked_at_1(name):
    ends = get_schedule(name).alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends[0] == pytest.approx(1)
    assert ends[1] == pytest.approx(1e-3 if name == "log_linear" else 0, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_inverts_the_move_chance(name):
    schedule = get_schedule(name)
    torch.testing.assert_close(schedule.time(1 - schedule.alpha(T)), T)
    assert float(schedule.time(torch.ones(1))) == 1


def test_the_log_linear_weight_is_one_over_t():
    torch.testing.assert_close(nelbo_weight(get_schedule("log_linear"), T), 1 / T)


def test_sigma_is_the_official_total_noise():
    torch.testing.assert_close(sigma(get_schedule("log_linear"), T), -torch.log1p(-(1 - 1e-3) * T))


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"'lin'.*log_linear, linear"):
        get_schedule("lin")
