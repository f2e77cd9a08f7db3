"""What the optimizers of a PPO run are set to."""

from typing import Any

import pytest
from torch import nn

from fledge.engine import TorchEngine
from rlhf.config import PpoConfig
from rlhf.session import Session


def session(schedule: str) -> Session:
    settings = PpoConfig.model_validate(
        {
            "model": "m",
            "reward": "r",
            "prompts": ["p"],
            "optim": {"learning_rate": 0.4, "critic_learning_rate": 0.8, "schedule": schedule}
            | {"beta2": 0.7, "weight_decay": 0.3},
            "run": {"device": "cpu", "dtype": "float32", "max_steps": 4},
            "engine": {"kind": "torch"},
        }
    )
    return Session(settings, nn.Linear(2, 2), nn.Linear(2, 1))


def groups(run: Session) -> list[dict[str, Any]]:
    """What the optimizers of policy and critic work with."""
    assert isinstance(run.actor, TorchEngine)
    assert isinstance(run.critic, TorchEngine)
    return [engine.optimizer.param_groups[0] for engine in (run.actor, run.critic)]


@pytest.mark.parametrize(("schedule", "shares"), [("linear", [1, 0.75, 0.5, 0.25]), ("constant", [1, 1, 1, 1])])
def test_both_learning_rates_fall_evenly_to_0_or_stay(schedule: str, shares: list[float]) -> None:
    run = session(schedule)
    for run.counters.step, share in enumerate(shares):
        assert run.set_learning_rates() == pytest.approx(0.4 * share)
        assert [group["lr"] for group in groups(run)] == pytest.approx([0.4 * share, 0.8 * share])


def test_adam_s_epsilon_is_ppo_s() -> None:
    assert [group["eps"] for group in groups(session("linear"))] == [1e-5, 1e-5]


def test_both_optimizers_are_set_as_was_asked() -> None:
    for group in groups(session("linear")):
        assert (group["betas"], group["weight_decay"]) == ((0.9, 0.7), 0.3)
