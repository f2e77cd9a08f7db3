"""The critic: where it reads, and what it begins as."""

from pathlib import Path

import pytest
import torch

from fledge.models import classifier
from fledge.models.folder import load_model
from rlhf.critic import Critic
from rlhf.policy import Answers

ANSWERS = Answers([[5, 6, 7], [8]], [[20, 21], [22, 23, 24, 25]])


def test_a_critic_from_a_policy_foresees_nothing_and_can_learn(qwen3: Path) -> None:
    model = load_model(qwen3)
    critic = Critic.from_policy(model)
    values_M = critic.values(ANSWERS)
    assert not values_M.any()
    (values_M - 1).square().sum().backward()
    assert critic.score.weight.grad.any()
    assert all(p is not q for p, q in zip(critic.body.parameters(), model.parameters(), strict=True))


def test_a_critic_from_a_reward_model_says_what_it_says_of_the_text_so_far(judge: Path) -> None:
    critic = Critic.from_reward_model(judge)
    model = classifier.load(judge, is_reward=True)
    # Before the third token of [8] -> 22 23 24 25 the text so far is 8 22 23.
    (expected,) = model.logits([[8, 22, 23]])[0]
    assert float(critic.scored(ANSWERS)[1][2]) == pytest.approx(float(expected), abs=1e-5)


def test_other_rows_change_no_value(judge: Path) -> None:
    critic = Critic.from_reward_model(judge)
    together = critic.scored(ANSWERS)
    for row in range(2):
        torch.testing.assert_close(together[row], critic.scored(ANSWERS.rows([row]))[0], atol=1e-6, rtol=1e-6)
