"""PPO's losses and the KL's estimators, by slow loops and by hand."""

import math

import pytest
import torch

from rlhf import kl
from rlhf.kl import KLControl
from rlhf.losses import explained_variance, policy_loss, value_loss


def test_policy_loss_by_hand() -> None:
    # Ratios 1.5, 1.5, 0.5, 0.5 and advantages 1, -1, 1, -1, cut at 0.8 and 1.2:
    # min(1.5, 1.2) + min(-1.5, -1.2) + min(0.5, 0.8) + min(-0.5, -0.8) = 1.2 - 1.5 + 0.5 - 0.8 = -0.6.
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5])
    found = policy_loss(ratios.log(), torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2)
    assert found.total.item() == pytest.approx(0.6, abs=1e-6)
    assert int(found.clipped) == 2  # the first and the last: there the cut is the smaller one
    assert found.ratio_error.item() == pytest.approx(0.5, abs=1e-6)
    assert found.kl_old.item() == pytest.approx(2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5)), abs=1e-6)


def test_clipped_tokens_teach_nothing() -> None:
    logprobs = torch.tensor([math.log(1.5), math.log(1.5), math.log(0.5), math.log(1.1)], requires_grad=True)
    policy_loss(logprobs, torch.zeros(4), torch.tensor([1.0, -1.0, -1.0, 1.0]), 0.2).total.backward()
    # Not cut: the second, d(-ratio A) = ratio = 1.5; the fourth, -1.1.
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, 1.5, 0.0, -1.1]))


def test_before_the_first_update_the_gradient_is_that_of_the_policy_gradient() -> None:
    logprobs = torch.tensor([-0.3, -2.0], requires_grad=True)
    advantages = torch.tensor([0.7, -0.2])
    found = policy_loss(logprobs, logprobs.detach(), advantages)
    found.total.backward()
    torch.testing.assert_close(logprobs.grad, -advantages)
    assert float(found.ratio_error) == 0
    assert float(found.kl_old) == 0
    assert int(found.clipped) == 0


def test_a_ratio_below_1_is_an_error_as_much_as_one_above() -> None:
    found = policy_loss(torch.tensor([0.25, 1.5]).log(), torch.zeros(2), torch.zeros(2))
    assert float(found.ratio_error) == pytest.approx(0.75)


def test_value_loss_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    value_M, old_M, return_M = torch.randn(3, 50, generator=generator)
    expected = 0.0
    for value, old, target in zip(value_M.tolist(), old_M.tolist(), return_M.tolist(), strict=True):
        near = min(max(value, old - 0.2), old + 0.2)
        expected += 0.5 * max((value - target) ** 2, (near - target) ** 2)
    assert value_loss(value_M, old_M, return_M, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_without_clip_the_value_loss_is_half_the_squared_error() -> None:
    value_M, return_M = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 0.0])
    assert value_loss(value_M, torch.zeros(2), return_M, 0).item() == 2.5


def test_explained_variance_of_a_perfect_a_constant_and_a_wrong_critic() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((3,), 9.0), returns) == 0
    assert explained_variance(-returns, returns) == -3
    assert explained_variance(returns, torch.ones(3)) == 0


def test_both_estimators_average_to_the_exact_kl() -> None:
    policy, reference = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    exact = (policy * (policy / reference).log()).sum()
    for estimator in (kl.k1, kl.k3):
        # The expectation over the policy's own samples, by enumeration.
        torch.testing.assert_close((policy * estimator(policy.log(), reference.log())).sum(), exact)
    assert (kl.k3(policy.log(), reference.log()) >= 0).all()
    assert (kl.k1(policy.log(), reference.log()) < 0).any()


def test_the_weight_is_led_to_the_target() -> None:
    control = KLControl(0.1, target=6, horizon=1000)
    control.update(12, 100)  # twice the target, but clipped to 0.2: 0.1 * (1 + 0.2 * 0.1)
    assert control.weight == pytest.approx(0.102)
    control.update(5.4, 100)  # 0.1 below: 0.102 * (1 - 0.1 * 0.1)
    assert control.weight == pytest.approx(0.10098)
    control.update(0, 100)  # clipped to -0.2: 0.10098 * (1 - 0.2 * 0.1)
    assert control.weight == pytest.approx(0.0989604)


def test_without_a_target_the_weight_stays() -> None:
    control = KLControl(0.1)
    control.update(99, 1000)
    assert control.weight == 0.1
