"""What a line of metrics.jsonl says of the steps since the last one."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from fledge.engine import StepResult
from pretrain.config import TrainConfig
from pretrain.guards import LossGuard
from pretrain.meter import Meter
from pretrain.session import Counters


def test_a_line_is_of_the_steps_since_the_last_one() -> None:
    settings = TrainConfig.model_validate(
        {
            "data": "d",
            "model": {"context": 8},
            "batch": {"sequences": 4},
            "run": {"device": "cpu", "dtype": "float32", "max_steps": 5, "log_every": 2},
        }
    )
    counters = Counters()
    session: Any = SimpleNamespace(
        config=settings, counters=counters, guard=LossGuard(settings.guard), flops_per_token=1, learning_rate=0.1
    )
    meter, lines = Meter(session, tokens_per_byte=0.25), []
    for counters.step in range(1, 6):
        counters.batch_index = counters.step + 3  # three were left out by a roll-back
        counters.recent_losses.append(math.nan if counters.step == 3 else counters.step * math.log(2))
        lines.append(meter.after_step(StepResult(1.0, 1.0, is_finite=True), step_s=counters.step))
    assert [bool(line) for line in lines] == [False, True, False, True, True]  # the last step has one, too
    told = [line for line in lines if line]
    assert [line["loss"] / math.log(2) for line in told] == pytest.approx([1.5, 4, 5])
    assert [line["bits_per_byte"] for line in told] == pytest.approx([1.5 / 4, 1, 5 / 4])
    assert [line["tokens"] for line in told] == [5 * 32, 7 * 32, 8 * 32]
    assert [line["tokens_per_s"] for line in told] == [round(seconds, 1) for seconds in (64 / 3, 64 / 7, 32 / 5)]
