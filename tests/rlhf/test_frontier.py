"""The frontier against other ways to the same numbers: optimisation, enumeration, and a case known in closed form."""

from itertools import combinations, product
from math import comb, log

import numpy as np
import pytest
from numpy import ndarray
from scipy.optimize import brentq, minimize
from scipy.special import xlogy

from rlhf import frontier

# Two prompts, ten answers of the reference to each; equal rewards are the same answer.
REWARDS = np.array([[0, 0, 0, 0, 0, 1, 1, 2, 2, 3], [-1, -1, -1, 4, 4, 4, 4, 4, 0.5, 0.5]], dtype=float)


def equally(num_prompts: int) -> ndarray:
    return np.full((1, num_prompts), 1 / num_prompts)


def best(rewards: ndarray, kl: float) -> float:
    found = frontier.trace(rewards)
    return float(found.at(np.array([[kl]]), equally(len(rewards)), found.reward)[0, 0])


def optimised(kl: float) -> float:
    """The highest mean reward of two distributions over the answers within a mean KL, by a general solver."""
    outcomes = [np.unique(row, return_counts=True) for row in REWARDS]
    value = np.concatenate([values for values, _ in outcomes])
    reference = np.concatenate([counts / 10 for _, counts in outcomes])
    is_first = np.arange(len(value)) < len(outcomes[0][0])

    def mean_kl(policy: ndarray) -> float:
        return float((xlogy(policy, policy / reference)).sum() / 2)

    found = minimize(
        lambda policy: -float(policy @ value) / 2,
        reference,
        method="SLSQP",
        bounds=[(1e-9, 1)] * len(value),
        constraints=[
            {"type": "eq", "fun": lambda policy: policy[is_first].sum() - 1},
            {"type": "eq", "fun": lambda policy: policy[~is_first].sum() - 1},
            {"type": "ineq", "fun": lambda policy: kl - mean_kl(policy)},
        ],
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    assert found.success
    return -float(found.fun)


@pytest.mark.parametrize("kl", [0.05, 0.3, 0.8])
def test_the_frontier_is_the_constrained_optimum_over_all_prompts(kl: float) -> None:
    assert best(REWARDS, kl) == pytest.approx(optimised(kl), abs=2e-3)


def test_no_policy_lies_above_the_frontier() -> None:
    random = np.random.default_rng(0)
    rewards = random.normal(size=(3, 40))
    policies = [random.dirichlet(np.full(40, 0.2), size=3) for _ in range(200)]
    policies += [np.eye(40)[rewards.argmax(1)], np.full((3, 40), 1 / 40)]
    for policy in policies:
        reward, kl = float((policy * rewards).sum(1).mean()), float(frontier.divergence(policy).mean())
        assert reward <= best(rewards, kl) + 1e-3


def test_rewards_that_are_normal_have_the_frontier_root_of_two_kl() -> None:
    # pi* of N(0, 1) is N(1 / beta, 1): reward 1 / beta, KL 1 / (2 beta^2).
    rewards = np.random.default_rng(0).normal(size=(200, 512))
    for kl in (0.1, 0.5, 1.0):
        assert best(rewards, kl) == pytest.approx((2 * kl) ** 0.5, rel=0.01)


def test_it_is_trusted_while_ten_answers_count() -> None:
    rewards = np.random.default_rng(0).normal(size=64)

    def effective(beta: float) -> float:
        weights = np.exp((rewards - rewards.max()) / beta)
        return float(weights.sum() ** 2 / (weights**2).sum())

    weights = np.exp(rewards / brentq(lambda beta: effective(beta) - 10, 0.05, 5))
    weights /= weights.sum()
    (trusted,) = frontier.trace(rewards[None]).trusted_kl(equally(1))
    assert trusted == pytest.approx(float((weights * np.log(64 * weights)).sum()), rel=0.05)


def test_few_samples_make_it_too_low_by_about_the_shortfall() -> None:
    rewards = np.random.default_rng(1).normal(size=(2000, 64))
    bias = 1 - best(rewards, 0.5)
    assert bias > 0.005
    assert frontier.shortfall(rewards, np.array([0.5]))[0] == pytest.approx(bias, rel=0.3)


def test_beyond_the_best_answers_it_is_flat() -> None:
    rewards = np.array([[0.0] * 48 + [1.0] * 16])  # a quarter is as good as can be
    found = frontier.trace(rewards)
    assert best(rewards, log(4)) == pytest.approx(1)
    assert best(rewards, 9) == pytest.approx(1)
    assert found.trusted_kl(equally(1)) == np.inf


def test_it_is_not_trusted_beyond_what_was_seen_of_one_prompt() -> None:
    # A half, and one answer alone, are the best: on average 16 answers count, and trust ends with the curve.
    rewards = np.array([[0.0, 1.0] * 32, [0.0] * 63 + [1.0]])
    (trusted,) = frontier.trace(rewards).trusted_kl(equally(2))
    assert trusted == pytest.approx((log(2) + log(64)) / 2, rel=1e-3)


def test_equal_rewards_leave_nothing_to_gain() -> None:
    found = frontier.trace(np.full((2, 16), 3.0))
    assert found.at(np.array([[0.0, 2.0]]), equally(2), found.reward).tolist() == [[3, 3]]
    assert found.trusted_kl(equally(2)) == np.inf


def test_prompts_can_count_differently() -> None:
    whole = frontier.trace(REWARDS)
    found = whole.at(np.array([[0.3]]), np.array([[0.0, 1.0]]), whole.reward)
    assert found[0, 0] == pytest.approx(best(REWARDS[1:], 0.3), abs=2e-3)


def test_a_second_reward_is_that_of_the_same_policies() -> None:
    found = frontier.trace(REWARDS, -2 * REWARDS)
    assert found.gold is not None
    np.testing.assert_allclose(found.gold, -2 * found.reward)


# --- best of n ---


@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_best_of_n_is_the_mean_over_all_sets_of_n(n: int) -> None:
    expected = np.zeros_like(REWARDS)
    for row, rewards in enumerate(REWARDS):
        for chosen in combinations(range(10), n):
            top = max(rewards[list(chosen)])
            winners = [i for i in chosen if rewards[i] == top]
            expected[row, winners] += 1 / len(winners) / comb(10, n)
    np.testing.assert_allclose(frontier.best_of(n, REWARDS).weight, expected, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_its_kl_is_that_of_the_enumerated_policy(n: int) -> None:
    for row, rewards in enumerate(REWARDS):
        policy = np.zeros(10)
        for drawn in product(range(10), repeat=n):
            winners = [i for i in drawn if rewards[i] == max(rewards[list(drawn)])]
            np.add.at(policy, winners, 1 / len(winners) / 10**n)
        expected = float(np.sum(xlogy(policy, policy * 10)))
        assert frontier.best_of(n, REWARDS).kl[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_its_kl_without_ties_is_the_known_formula_and_with_ties_less(n: int) -> None:
    random = np.random.default_rng(0)
    bound = log(n) - (n - 1) / n
    assert frontier.best_of(n, random.normal(size=(1, 256))).kl[0] == pytest.approx(bound, abs=2e-3)
    assert frontier.best_of(n, random.integers(3, size=(1, 256)).astype(float)).kl[0] < 0.9 * bound


def test_best_of_all_takes_the_best() -> None:
    assert frontier.best_of(10, REWARDS).weight[0].tolist() == [0] * 9 + [1]
