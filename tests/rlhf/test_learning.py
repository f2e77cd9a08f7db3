"""What a step's updates are made of, and what is told of them."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge import processes
from fledge.engine import StepResult
from fledge.errors import RunFailed
from rlhf import losses
from rlhf.config import PpoConfig
from rlhf.learning import Learner
from rlhf.policy import Answers
from rlhf.rollout import Lesson

SETTINGS = PpoConfig.model_validate(
    {
        "model": "m",
        "reward": "r",
        "prompts": ["p"],
        "rollout": {"episodes": 2},
        "batch": {"epochs": 2, "minibatch": 2, "microbatch": 1},
        "clip": {"ratio": 0.1, "value": 0.05, "entropy": 0.5},
    }
)
ANSWERS = Answers([[9], [9]], [[3], [1, 2, 4]])
IS_TOKEN = torch.tensor([[True, False, False], [True, True, True]])
PADDING = 77.0  # must not matter


class Engine:
    """Adds up the portions of an update without learning from them; the update after that is not finite."""

    def __init__(self, num_finite: int = 99) -> None:
        self.left = num_finite

    def update(self, portions: Sequence[Callable[[], Tensor]]) -> StepResult:
        self.left -= 1
        loss = sum(float(portion().detach()) for portion in portions)
        return StepResult(loss if self.left >= 0 else math.nan, 3.0, is_finite=self.left >= 0)


def said(answers: Answers) -> Tensor:
    """A number a token, by its id."""
    return torch.tensor([float(number) for ids in answers.answers for number in ids])


def learner(actor: Engine, critic: Engine) -> Learner:
    session: Any = SimpleNamespace(counters=SimpleNamespace(step=4), actor=actor, critic=critic)
    policy: Any = SimpleNamespace(device="cpu", logprobs=lambda answers: (-0.1 * said(answers), 0.2 * said(answers)))
    return Learner(SETTINGS, session, policy, SimpleNamespace(values=lambda answers: 0.3 * said(answers)))  # type: ignore[arg-type]


def lesson() -> Lesson:
    tokens = {
        "logprob_BN": [-0.2, -0.5, -0.3, -0.1],
        "value_BN": [0.5, 0.1, 0.6, 1.0],
        "advantage_BN": [1.0, -1.0, 2.0, 0.5],
        "return_BN": [1.0, 0.0, 2.0, -1.0],
    }
    padded = {name: torch.full((2, 3), PADDING) for name in tokens}
    for name, values in tokens.items():
        padded[name][IS_TOKEN] = torch.tensor(values)
    return Lesson(ANSWERS, IS_TOKEN, **padded)


def test_the_numbers_of_a_step_are_means_over_tokens_and_updates() -> None:
    found = learner(Engine(), Engine()).learn(lesson()).metrics()
    one, ids_M = lesson(), said(ANSWERS)
    of_tokens = [getattr(one, f"{name}_BN")[IS_TOKEN] for name in ("logprob", "value", "advantage", "return")]
    logprob_M, value_M, advantage_M, return_M = of_tokens
    policy = losses.policy_loss(-0.1 * ids_M, logprob_M, advantage_M, 0.1)
    assert 0 < float(policy.clipped) < 4
    assert found == pytest.approx(
        {
            "updates": 2,
            "value_loss": float(losses.value_loss(0.3 * ids_M, value_M, return_M, 0.05)) / 4,
            "policy_loss": float(policy.total - 0.5 * 0.2 * ids_M.sum()) / 4,
            "entropy": 0.2 * 10 / 4,
            "clipped_share": float(policy.clipped) / 4,
            "ratio_error": float(policy.ratio_error),
            "step_kl": float(policy.kl_old) / 4,
            "gradient_norm": 3,
        },
        rel=1e-5,
    )


def test_the_ratio_error_is_the_largest_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "gathered", lambda own: [own, 7.0])  # as another process found
    assert learner(Engine(), Engine()).learn(lesson()).ratio_error == 7


@pytest.mark.parametrize("whose", ["policy", "critic"])
def test_what_is_not_finite_stops_the_run_and_says_whose_and_where(whose: str) -> None:
    engines = Engine(1 if whose == "policy" else 99), Engine(1 if whose == "critic" else 99)
    with pytest.raises(RunFailed, match=f"step 5: the {whose}'s loss or gradient is not finite"):
        learner(*engines).learn(lesson())
