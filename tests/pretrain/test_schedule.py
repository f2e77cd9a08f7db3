"""Learning-rate schedules."""

import math

import pytest
import torch
from pydantic import ValidationError

from pretrain.config import ScheduleConfig
from pretrain.schedule import learning_rate_share


def shares(config: ScheduleConfig, num_steps: int) -> list[float]:
    return [learning_rate_share(config, step, num_steps) for step in range(num_steps)]


def test_wsd_worked_by_hand() -> None:
    # 10 steps: 2 of warmup (1/2, 2/2), 4 stable, 4 of decay: left 4..1 of 5 -> 4/5, 3/5, 2/5, 1/5
    config = ScheduleConfig(kind="wsd", warmup=0.2, decay=0.4, floor=0.0)
    assert shares(config, 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("num_warmup", [0, 10])
def test_cosine_equals_torch_after_warmup(num_warmup: int) -> None:
    config = ScheduleConfig(kind="cosine", warmup=num_warmup / 50, floor=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50 - num_warmup, eta_min=0.1)
    expected = [(step + 1) / 10 for step in range(num_warmup)]
    for _ in range(num_warmup, 50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    assert shares(config, 50) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 1000])
def test_shares_stay_between_floor_and_one(kind: str, num_steps: int) -> None:
    config = ScheduleConfig.model_validate({"kind": kind, "warmup": 0.1, "floor": 0.05})
    values = shares(config, num_steps)
    assert all(0.05 <= value <= 1 or step < 0.1 * num_steps for step, value in enumerate(values))
    assert all(math.isfinite(value) and value > 0 for value in values)


def test_warmup_and_decay_must_fit_into_the_run() -> None:
    with pytest.raises(ValidationError, match="together are more than the whole run"):
        ScheduleConfig(warmup=0.6, decay=0.6)
