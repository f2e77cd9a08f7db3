"""The size dial."""

import pytest

from fledge import config
from pretrain import sizing
from pretrain.config import TrainConfig


def test_the_dial_scales_batch_and_rate_from_the_configs_own_width() -> None:
    base = config.with_values(
        TrainConfig(data="x", size=8), {"model.width": 128, "batch.sequences": 8, "optim.learning_rate": 0.01}
    )
    found = sizing.from_depth(base)
    # 8 layers are 512 wide, four times 128: four times the sequences, half the rate
    assert (found["model.layers"], found["model.width"], found["model.heads"]) == (8, 512, 8)
    assert found["batch.sequences"] == 32
    assert found["optim.learning_rate"] == pytest.approx(0.005)


def test_the_configs_own_width_changes_nothing_but_the_shape() -> None:
    base = config.with_values(TrainConfig(data="x", size=2), {"model.width": 128})
    found = sizing.from_depth(base)
    assert found["batch.sequences"] == base.batch.sequences
    assert found["optim.learning_rate"] == base.optim.learning_rate
