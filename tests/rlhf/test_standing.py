"""Where policies stand under the frontier, from what was measured of their answers."""

import dataclasses
from math import log

import numpy as np
import pytest
from numpy import ndarray
from scipy import stats

from rlhf import frontier, standing
from rlhf.drawn import Drawn
from rlhf.standing import Point, Standing


def answers(reward_PN: ndarray, gold_PN: ndarray | None = None) -> Drawn:
    """The reference's answers with these rewards."""
    zero = np.zeros_like(reward_PN)
    text = np.full(reward_PN.shape, "a b c", dtype=object)
    return Drawn(text, zero + 3, zero == 0, zero, zero - 6, reward_PN, gold_PN)


def test_texts_are_told_by_their_tokens() -> None:
    # Perplexity exp(6 / 3); of two equal texts half of the four pairs of words are different.
    told = answers(np.zeros((1, 2))).told(2)
    expected = {"distinct_2": 0.5, "answer_tokens": 3, "stopped_share": 1, "perplexity": float(np.exp(2))}
    assert told == pytest.approx(expected)


@pytest.fixture(scope="module")
def rewards() -> ndarray:
    """Of 40 prompts with 64 answers each."""
    return np.random.default_rng(0).normal(size=(40, 64)) + np.arange(40)[:, None] / 10


def stand(rewards: ndarray, gold: ndarray | None = None) -> tuple[Standing, Point]:
    own = answers(rewards, gold)
    reference = standing.mean_point("reference", "reference", own, 1)
    return Standing(reference, own, 0), reference


def optimal(rewards: ndarray, kl: float) -> Point:
    """The best policy at about this KL."""
    found = frontier.trace(rewards)
    place = int(found.kl.mean(0).searchsorted(kl))
    return Point("best", "ppo", found.kl[:, place], found.reward[:, place], None, {})


def test_a_policy_on_the_frontier_has_all_that_is_possible(rewards: ndarray) -> None:
    line = stand(rewards)[0].line(optimal(rewards, 0.7))
    assert line["is_trusted"]
    assert [line["share"][name] for name in ("low", "value", "high")] == pytest.approx([1, 1, 1], abs=1e-3)


def test_a_policy_that_spends_its_kl_on_nothing_has_none_of_it(rewards: ndarray) -> None:
    against, reference = stand(rewards)
    line = against.line(Point("idle", "ppo", np.full(40, 0.5), reference.reward, None, {}))
    assert line["share"] == pytest.approx({"value": 0, "low": 0, "high": 0})
    assert line["possible_gain"]["value"] == pytest.approx(1, rel=0.1)  # sqrt(2 KL) of normal rewards


def test_where_the_frontier_is_not_trusted_the_share_is_told_before(rewards: ndarray) -> None:
    against, reference = stand(rewards)
    assert against.trusted_kl is not None
    line = against.line(Point("far", "ppo", np.full(40, 30.0), reference.reward + 1, None, {}))
    assert not line["is_trusted"]
    assert line["share_kl"] == against.trusted_kl
    assert line["share"]["value"] == pytest.approx(1 / against.told_frontier()[-1]["gain"]["value"])


def test_the_reference_has_no_share(rewards: ndarray) -> None:
    against, reference = stand(rewards)
    assert against.line(reference)["share"] == {"value": None, "low": None, "high": None}


def test_intervals_of_gains_are_those_of_a_paired_test(rewards: ndarray) -> None:
    against, reference = stand(rewards)
    gained = np.random.default_rng(1).normal(0.3, 0.5, 40)
    found = against.line(Point("x", "ppo", np.ones(40), reference.reward + gained, None, {}))["gain"]
    assert found["value"] == pytest.approx(gained.mean())
    oracle = stats.ttest_1samp(gained, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((oracle.low, oracle.high), abs=0.03)


def test_the_told_frontier_ends_with_trust(rewards: ndarray) -> None:
    lines = stand(rewards)[0].told_frontier()
    assert [line["kl"] for line in lines[:4]] == [0.1, 0.2, 0.5, 1.0]
    assert lines[-1]["effective_answers"] == pytest.approx(10, rel=0.1)
    for line in lines:  # normal rewards: sqrt(2 KL), from so few answers somewhat less
        assert line["gain"]["value"] + line["shortfall"] == pytest.approx((2 * line["kl"]) ** 0.5, rel=0.06)


def test_what_is_certainly_wrong_is_flagged(rewards: ndarray) -> None:
    gold = np.random.default_rng(2).normal(size=rewards.shape)
    against, reference = stand(rewards, gold)
    best_of_4 = standing.best_of(4, answers(rewards, gold), 1)
    assert best_of_4.kl.mean() == pytest.approx(log(4) - 3 / 4, abs=0.01)
    wasteful = Point("wasteful", "ppo", np.full(40, 2.0), reference.reward + 0.3, reference.gold, {})
    assert reference.gold is not None
    hacked = Point("hacked", "ppo", np.full(40, 0.1), reference.reward + 0.3, reference.gold - 0.2, {})
    fine = Point("fine", "ppo", np.full(40, 2.0), reference.reward + 1.5, reference.gold, {})
    assert against.flags([reference, best_of_4, wasteful, hacked, fine]) == [
        "wasteful has less reward than best of 4, which is no farther from the reference",
        "hacked has more reward than the reference and less gold reward: over-optimised",
    ]


def test_perplexity_is_over_all_tokens_and_variety_over_the_first_answers() -> None:
    own = dataclasses.replace(
        answers(np.zeros((1, 3))),
        text=np.array([["a b c", "a b c", "x y z"]], dtype=object),
        tokens=np.array([[1, 2, 7]]),
        reference_nats=np.array([[-1.0, -5.0, -4.0]]),
    )
    assert own.told(2)["distinct_2"] == 0.5
    assert own.told(2)["perplexity"] == pytest.approx(np.exp(10 / 10))


def test_what_best_of_n_says_is_that_of_the_best_of_each_n() -> None:
    own = dataclasses.replace(answers(np.array([[0.0, 1, 3, 2]])), tokens=np.array([[1, 10, 100, 1000]]))
    assert standing.best_of(2, own, 1).told["answer_tokens"] == (10 + 100) / 2


def test_what_may_be_chance_is_not_flagged(rewards: ndarray) -> None:
    gold = np.random.default_rng(2).normal(size=rewards.shape)
    against, reference = stand(rewards, gold)
    best_of_4 = standing.best_of(4, answers(rewards, gold), 1)
    assert reference.gold is not None
    noise = np.random.default_rng(3).normal(size=40)
    noise -= noise.mean()
    # Means below by a third of a standard error: 1 / sqrt(40) / 3.
    unlucky = Point(
        "unlucky", "ppo", np.full(40, 2.0), best_of_4.reward + noise - 0.05, reference.gold + noise - 0.05, {}
    )
    assert against.flags([reference, best_of_4, unlucky]) == []
